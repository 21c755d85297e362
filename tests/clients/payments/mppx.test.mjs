// mppx, MPP's TypeScript client, pays a provider. Its own EVM method only knows single charges, so the method is
// from here, with viem's signatures; reading, paying on a 402 and writing credentials is mppx.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Challenge, Credential, Method, Receipt, z } from "mppx";
import { Mppx } from "mppx/client";
import {
  createPublicClient,
  createWalletClient,
  defineChain,
  encodeAbiParameters,
  getAddress,
  http,
  keccak256,
  zeroAddress,
} from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";

const { NODE_URL, PROVIDER_URL, TEST_MODEL: model } = process.env;
const url = `${PROVIDER_URL}/chat/completions`;
const ask = { model, messages: [{ role: "user", content: "hi" }], max_tokens: 1 };
const post = (headers = {}) =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(ask),
  });

test("mppx reads the challenge", async () => {
  const response = await post();
  assert.equal(response.status, 402);
  const challenge = Challenge.fromResponse(response);
  assert.equal(challenge.method, "evm");
  assert.equal(challenge.intent, "session");
  assert.equal(challenge.realm, "127.0.0.1");
  assert.ok(Date.parse(challenge.expires) > Date.now());
  const { request } = challenge;
  assert.equal(request.amount, String(3n * 10n ** 14n));
  assert.equal(request.unitType, "llm_token");
  assert.equal(request.methodDetails.chainId, 1337);
  assert.equal(request.methodDetails.feePayer, true);
  for (const address of [request.currency, request.recipient, request.methodDetails.escrowContract]) {
    assert.equal(getAddress(address).toLowerCase(), address.toLowerCase());
  }
});

test("a credential that mppx writes is read: only what it pays with is wrong", async () => {
  const challenge = Challenge.fromResponse(await post());
  const payload = {
    action: "voucher",
    channelId: `0x${"11".repeat(32)}`,
    cumulativeAmount: "1",
    signature: `0x${"22".repeat(64)}1b`,
  };
  const refused = await post({ authorization: Credential.serialize({ challenge, payload }) });
  assert.equal(refused.status, 410);
  const problem = await refused.json();
  assert.equal(problem.type, "https://paymentauth.org/problems/session/channel-not-found");
  assert.equal(problem.channelId, payload.channelId);
});

const hash = (types, values) => keccak256(encodeAbiParameters(types.map((type) => ({ type })), values));

/** A method for mppx: opens a channel with a first voucher over `amount`. */
function session(account, deposit, amount) {
  const definition = Method.from({
    name: "evm",
    intent: "session",
    schema: { credential: { payload: z.any() }, request: z.any() },
  });
  return Method.toClient(definition, {
    async createCredential({ challenge }) {
      const { currency, recipient, methodDetails } = challenge.request;
      const { chainId, escrowContract } = methodDetails;
      const salt = generatePrivateKey();
      const parties = [account.address, recipient, currency, salt, zeroAddress];
      const kinds = ["address", "address", "address", "bytes32", "address"];
      const nonce = hash(kinds, parties);
      const channelId = hash([...kinds, "address", "uint256"], [...parties, escrowContract, BigInt(chainId)]);
      const authorization = {
        from: account.address,
        to: getAddress(escrowContract),
        value: String(deposit),
        validAfter: "0",
        validBefore: String(Math.floor(Date.now() / 1000) + 600),
        nonce,
      };
      const signature = await account.signTypedData({
        domain: { name: "Tenzro", version: "1", chainId, verifyingContract: currency },
        primaryType: "ReceiveWithAuthorization",
        types: {
          ReceiveWithAuthorization: [
            { name: "from", type: "address" },
            { name: "to", type: "address" },
            { name: "value", type: "uint256" },
            { name: "validAfter", type: "uint256" },
            { name: "validBefore", type: "uint256" },
            { name: "nonce", type: "bytes32" },
          ],
        },
        message: authorization,
      });
      const voucherSignature = await account.signTypedData({
        domain: { name: "EVM Payment Channel", version: "1", chainId, verifyingContract: escrowContract },
        primaryType: "Voucher",
        types: {
          Voucher: [
            { name: "channelId", type: "bytes32" },
            { name: "cumulativeAmount", type: "uint128" },
          ],
        },
        message: { channelId, cumulativeAmount: amount },
      });
      const payload = {
        action: "open",
        type: "authorization",
        channelId,
        authorization,
        signature,
        cumulativeAmount: String(amount),
        voucherSignature,
        salt,
      };
      return Credential.serialize({ challenge, payload });
    },
  });
}

test("mppx pays for an answer, with viem's signatures", async () => {
  const network = await rpc("tenzro_networkInfo");
  const chain = defineChain({
    id: network.chain_id,
    name: "Tenzro embedded",
    nativeCurrency: { name: "gas coin", symbol: "GAS", decimals: 18 },
    rpcUrls: { default: { http: [NODE_URL] } },
  });
  const account = privateKeyToAccount(generatePrivateKey());
  const options = { chain, transport: http(), pollingInterval: 30, cacheTime: 0 };
  const wallet = createWalletClient({ account, ...options });
  const client = createPublicClient(options);
  const contract = (name, address) => ({ address, abi: abi(name) });
  const drip = await wallet.writeContract({
    ...contract("Faucet", network.contracts.faucet),
    functionName: "drip",
    args: [account.address],
  });
  assert.equal((await client.waitForTransactionReceipt({ hash: drip })).status, "success");

  const [deposit, amount] = [10n ** 18n, 10n ** 17n];
  const mppx = Mppx.create({ methods: [session(account, deposit, amount)], polyfill: false });
  const response = await mppx.fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...ask, max_tokens: 8, ignore_eos: true }),
  });
  assert.equal(response.status, 200);
  const { usage, choices } = await response.json();
  assert.ok(choices[0].message.content);
  assert.equal(usage.completion_tokens, 8);
  const spent = BigInt(usage.prompt_tokens) * 10n ** 14n + 8n * 3n * 10n ** 14n;
  const receipt = Receipt.fromResponse(response);
  assert.equal(receipt.method, "evm");
  assert.equal(receipt.reference, receipt.channelId);
  assert.equal(receipt.acceptedCumulative, String(amount));
  assert.equal(receipt.spent, String(spent));
  assert.equal(receipt.usage.charged, String(spent));
  const found = await client.readContract({
    ...contract("PaymentChannels", network.contracts.payment_channels),
    functionName: "getChannel",
    args: [receipt.channelId],
  });
  assert.equal(found.payer, account.address);
  assert.equal(found.deposit, deposit);
});

function abi(name) {
  const file = new URL(`../../../contracts/artifacts/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).abi;
}

async function rpc(method) {
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: [] });
  const headers = { "content-type": "application/json" };
  return (await (await fetch(NODE_URL, { method: "POST", headers, body })).json()).result;
}
