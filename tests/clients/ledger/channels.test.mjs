// PaymentChannels with viem: the life of a channel, and digests that agree with EIP-712 libraries.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TypedDataEncoder } from "ethers";
import {
  encodeAbiParameters,
  hashDomain,
  hashTypedData,
  keccak256,
  parseAbiParameters,
  parseEventLogs,
  toHex,
  zeroAddress,
} from "viem";

import {
  DRIP,
  TNZO,
  balanceOf,
  contracts,
  info,
  mined,
  newWallet,
  publicClient,
  tokenDomain,
} from "./support.mjs";

const { channels, tnzo } = contracts;
const domain = {
  name: "EVM Payment Channel",
  version: "1",
  chainId: info.chain_id,
  verifyingContract: channels.address,
};
const types = {
  Voucher: [
    { name: "channelId", type: "bytes32" },
    { name: "cumulativeAmount", type: "uint128" },
  ],
};

const read = (functionName, args = []) => publicClient.readContract({ ...channels, functionName, args });
const write = (wallet, functionName, args) => wallet.writeContract({ ...channels, functionName, args });
const voucher = (wallet, channelId, cumulativeAmount) =>
  wallet.signTypedData({ domain, types, primaryType: "Voucher", message: { channelId, cumulativeAmount } });

let salts = 0;
async function open(payer, payee, deposit, signer = zeroAddress) {
  salts += 1;
  const salt = toHex(salts, { size: 32 });
  const approve = { ...tnzo, functionName: "approve", args: [channels.address, deposit] };
  await mined(await payer.writeContract(approve));
  const args = [payee.address, tnzo.address, deposit, salt, signer];
  const { logs } = await mined(await write(payer, "open", args));
  const [opened] = parseEventLogs({ ...channels, logs, eventName: "ChannelOpened" });
  const parameters = parseAbiParameters("address, address, address, bytes32, address, address, uint256");
  const values = [payer.address, payee.address, tnzo.address, salt, signer, channels.address, 1337n];
  assert.equal(opened.args.channelId, keccak256(encodeAbiParameters(parameters, values)));
  assert.equal(await read("computeChannelId", values.slice(0, 5)), opened.args.channelId);
  return opened.args.channelId;
}

async function refusal(wallet, functionName, args) {
  const request = { ...channels, functionName, args, account: wallet.account };
  const error = await publicClient.simulateContract(request).then(
    () => assert.fail("it worked"),
    (error) => error,
  );
  return error.walk((cause) => cause.data?.errorName)?.data.errorName ?? error.message;
}

test("digests and domain separators are those of viem and ethers", async () => {
  const message = { channelId: toHex(9n, { size: 32 }), cumulativeAmount: 2n ** 127n + 5n };
  const digest = await read("voucherDigest", Object.values(message));
  assert.equal(digest, hashTypedData({ domain, types, primaryType: "Voucher", message }));
  assert.equal(digest, TypedDataEncoder.hash(domain, types, message));
  const fields = ["string name", "string version", "uint256 chainId", "address verifyingContract"];
  const EIP712Domain = fields.map((field) => field.split(" ")).map(([type, name]) => ({ type, name }));
  const separator = (of) => hashDomain({ domain: of, types: { EIP712Domain } });
  assert.equal(await read("domainSeparator"), separator(domain));
  const own = await publicClient.readContract({ ...tnzo, functionName: "DOMAIN_SEPARATOR" });
  assert.equal(own, separator(await tokenDomain()));
  for (const contract of [channels, tnzo]) {
    const told = await publicClient.getEip712Domain({ address: contract.address });
    assert.equal(told.domain.chainId, info.chain_id);
    assert.equal(told.domain.verifyingContract, contract.address);
  }
});

test("open, settle by voucher, top up, close", async () => {
  const [payer, payee] = [await newWallet(), await newWallet()];
  const id = await open(payer, payee, 10n * TNZO);
  assert.equal(await balanceOf(payer.address), DRIP - 10n * TNZO);
  const first = await voucher(payer, id, 3n * TNZO);
  const { logs } = await mined(await write(payee, "settle", [id, 3n * TNZO, first]));
  const [settled] = parseEventLogs({ ...channels, logs, eventName: "ChannelSettled" });
  assert.equal(settled.args.amount, 3n * TNZO);
  assert.equal(await balanceOf(payee.address), DRIP + 3n * TNZO);
  assert.equal(await refusal(payee, "settle", [id, 3n * TNZO, first]), "AmountNotIncreasing");
  const forged = await voucher(payee, id, 4n * TNZO);
  assert.equal(await refusal(payee, "settle", [id, 4n * TNZO, forged]), "InvalidSignature");
  const over = await voucher(payer, id, 11n * TNZO);
  assert.equal(await refusal(payee, "settle", [id, 11n * TNZO, over]), "AmountExceedsDeposit");
  assert.equal(await refusal(payer, "settle", [id, 4n * TNZO, first]), "NotPayee");
  const approve = { ...tnzo, functionName: "approve", args: [channels.address, 5n * TNZO] };
  await mined(await payer.writeContract(approve));
  await mined(await write(payer, "topUp", [id, 5n * TNZO]));
  await mined(await write(payee, "close", [id, 11n * TNZO, over]));
  assert.equal(await balanceOf(payee.address), DRIP + 11n * TNZO);
  assert.equal(await balanceOf(payer.address), DRIP - 11n * TNZO);
  const channel = await read("getChannel", [id]);
  assert.equal(channel.finalized, true);
  assert.equal(channel.settled, 11n * TNZO);
  assert.equal(await refusal(payer, "topUp", [id, 1n]), "ChannelFinalized");
});

test("a channel opened by signature, with its own signer of vouchers, settled in a batch", async () => {
  const [payer, payee, signer] = [await newWallet(), await newWallet(), await newWallet({ funded: false })];
  const salt = toHex(77n, { size: 32 });
  const deposit = 2n * TNZO;
  const binding = parseAbiParameters("address, address, address, bytes32, address");
  const bound = [payer.address, payee.address, tnzo.address, salt, signer.address];
  const nonce = keccak256(encodeAbiParameters(binding, bound));
  const fields = ["address from", "address to", "uint256 value", "uint256 validAfter"];
  fields.push("uint256 validBefore", "bytes32 nonce");
  const signature = await payer.signTypedData({
    domain: await tokenDomain(),
    types: {
      ReceiveWithAuthorization: fields.map((f) => f.split(" ")).map(([type, name]) => ({ type, name })),
    },
    primaryType: "ReceiveWithAuthorization",
    message: {
      from: payer.address,
      to: channels.address,
      value: deposit,
      validAfter: 0n,
      validBefore: 2n ** 40n,
      nonce,
    },
  });
  const args = [payee.address, tnzo.address, deposit, salt, signer.address, payer.address, 0n, 2n ** 40n];
  await mined(await write(payee, "openWithAuthorization", [...args, nonce, signature]));
  const id = await read("computeChannelId", bound);
  const rows = [
    { channelId: id, cumulativeAmount: TNZO, signature: await voucher(signer, id, TNZO) },
    { channelId: nonce, cumulativeAmount: 1n, signature: "0x" },
    { channelId: id, cumulativeAmount: deposit, signature: await voucher(signer, id, deposit) },
  ];
  const { logs } = await mined(await write(payee, "settleBatch", [rows]));
  const names = parseEventLogs({ ...channels, logs }).map((event) => event.eventName);
  assert.deepEqual(names, ["ChannelSettled", "SettlementSkipped", "ChannelSettled"]);
  assert.equal(await balanceOf(payee.address), DRIP + deposit);
});

test("the payer alone waits for the grace period", async () => {
  const [payer, payee] = [await newWallet(), await newWallet({ funded: false })];
  const id = await open(payer, payee, TNZO);
  assert.equal(await refusal(payer, "withdraw", [id]), "CloseNotReady");
  await mined(await write(payer, "requestClose", [id]));
  assert.equal(await refusal(payer, "withdraw", [id]), "CloseNotReady");
  assert.notEqual((await read("getChannel", [id])).closeRequestedAt, 0n);
  const held = await balanceOf(channels.address);
  assert.ok(held >= TNZO);
});
