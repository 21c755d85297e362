// What the tests share: the node that tests/clients/run-ledger started, its contracts, and wallets with TNZO.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createPublicClient, createWalletClient, defineChain, encodeFunctionData, http } from "viem";
import { generatePrivateKey, privateKeyToAccount } from "viem/accounts";

export const TNZO = 10n ** 18n;
export const DRIP = 20_000n * TNZO;
export const STAKE = 1_000n * TNZO;

/** Codes that product.md and json_rpc.rs promise. */
export const code = {
  PARSE: -32700,
  INVALID_REQUEST: -32600,
  METHOD_NOT_FOUND: -32601,
  INVALID_PARAMS: -32602,
  UNAUTHORIZED: -32001,
  TRANSACTION: -32003,
  NOT_FOUND: -32004,
  ENDPOINT: -32011,
};

/** A node: where it is, and its operator token. */
function nodeAt(url, home) {
  const token = readFileSync(join(home, "rpc.token"), "utf8").trim();
  return { url, token, home };
}

export const node = nodeAt(process.env.NODE_URL, process.env.TENZRO_HOME);

/** A node with settings, for tests that turn its clock or stop it; ends with this process at the latest. */
export function startNode(settings = {}, flags = []) {
  const home = mkdtempSync(join(tmpdir(), "tenzro-"));
  const cli = (...args) =>
    execFileSync(process.env.TENZRO_CLI, ["--json", "--quiet", "--home", home, ...args], {
      encoding: "utf8",
      env: { ...process.env, ...settings },
    });
  const start = (port) => JSON.parse(cli("node", "start", "--port", port, "--detach", ...flags));
  const started = start("0");
  const { port } = new URL(started.node.rpc_url);
  const stop = () => {
    if (!own.delete(stop)) return;
    try {
      cli("node", "stop");
    } finally {
      rmSync(home, { recursive: true, force: true });
    }
  };
  own.add(stop);
  return {
    ...nodeAt(started.node.rpc_url, home),
    /** Ends the process; `start` begins it again at the same address. */
    pause: () => cli("node", "stop"),
    start: () => start(port),
    stop,
  };
}

const own = new Set();
// Also when a test file ends before its time.
process.on("exit", () => {
  for (const stop of own) stop();
});

// --- JSON-RPC as bytes -----------------------------------------------------------------------------

/** Posts a body, text or a value; status, headers, and the body as JSON where there is one. */
export async function post(body, { headers = {}, url = node.url, token } = {}) {
  const text = typeof body === "string" || body instanceof Uint8Array ? body : JSON.stringify(body);
  const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization, ...headers },
    body: text,
    redirect: "manual",
  });
  const answer = await response.text();
  return {
    status: response.status,
    headers: response.headers,
    text: answer,
    json: answer === "" ? undefined : JSON.parse(answer),
  };
}

/** The answer to one call. */
export async function ask(method, params, options) {
  const { json } = await post({ jsonrpc: "2.0", id: 7, method, params }, options);
  assert.equal(json.jsonrpc, "2.0");
  assert.equal(json.id, 7);
  assert.equal("result" in json, !("error" in json), "either a result or an error");
  return json;
}

/** The result of a call that has to work. */
export async function call(method, params, options) {
  const answer = await ask(method, params, options);
  assert.equal(answer.error, undefined, `${method}: ${JSON.stringify(answer.error)}`);
  return answer.result;
}

/** The same, for the operator. */
export const asOperator = (method, params, { node: at = node } = {}) =>
  call(method, params, { token: at.token, url: at.url });

/** The error of a call that must not work; its code is one of `codes`, its message matches. */
export async function refused(method, params, codes, message, options) {
  const answer = await ask(method, params, options);
  assert.notEqual(answer.error, undefined, `${method} worked: ${JSON.stringify(answer.result)}`);
  const shown = `${method}: ${JSON.stringify(answer.error)}`;
  assert.ok([codes].flat().includes(answer.error.code), shown);
  if (message) assert.match(answer.error.message, message, shown);
  noInternals(answer.error.message);
  return answer.error;
}

/** Words of the program's inside are not for users. */
export function noInternals(message) {
  const inside =
    /untagged enum|did not match any variant|struct \w+Param|panicked|unwrap|Sqlite|TransportError|0x08c379a0/i;
  assert.doesNotMatch(message, inside);
  assert.ok(message.length < 600, `a message of ${message.length} characters`);
}

// --- Chain ---------------------------------------------------------------------------------------

const abi = (name) => {
  const file = new URL(`../../../contracts/artifacts/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).abi;
};

export const info = await call("tenzro_networkInfo", []);

export const contracts = {
  tnzo: { address: info.contracts.tnzo, abi: abi("TNZO") },
  faucet: { address: info.contracts.faucet, abi: abi("Faucet") },
  registry: { address: info.contracts.provider_registry, abi: abi("ProviderRegistry") },
  channels: { address: info.contracts.payment_channels, abi: abi("PaymentChannels") },
};

export function chainAt(url) {
  return defineChain({
    id: info.chain_id,
    name: "Tenzro embedded",
    nativeCurrency: { name: "gas coin", symbol: "GAS", decimals: 18 },
    rpcUrls: { default: { http: [url] } },
  });
}

export const chain = chainAt(node.url);

export const publicClientAt = (at) =>
  createPublicClient({ chain: chainAt(at.url), transport: http(), pollingInterval: 30, cacheTime: 0 });

export const publicClient = publicClientAt(node);

/** A viem wallet that nobody used before; with `funded`, with what the faucet gives. */
export async function newWallet({ funded = true, at = node, account } = {}) {
  const key = generatePrivateKey();
  const wallet = createWalletClient({
    account: account ?? privateKeyToAccount(key),
    chain: chainAt(at.url),
    transport: http(),
    pollingInterval: 30,
    cacheTime: 0,
  });
  if (funded) {
    // Anybody may ask for anybody, here the new wallet for itself: it has no coin and needs none.
    const { faucet } = contracts;
    const address = wallet.account.address;
    const hash = await wallet.writeContract({ ...faucet, functionName: "drip", args: [address] });
    await mined(hash, publicClientAt(at));
  }
  return Object.assign(wallet, { address: wallet.account.address, key });
}

/** The receipt of a transaction that succeeded. */
export async function mined(hash, client = publicClient) {
  const receipt = await client.waitForTransactionReceipt({ hash, timeout: 10_000 });
  assert.equal(receipt.status, "success");
  return receipt;
}

export const balanceOf = (address, extra = {}) =>
  publicClient.readContract({ ...contracts.tnzo, functionName: "balanceOf", args: [address], ...extra });

export const registry = (functionName, args = [], extra = {}) =>
  publicClient.readContract({ ...contracts.registry, functionName, args, ...extra });

/** A raw transaction that was never sent. */
export async function sign(wallet, contract, functionName, args, overrides = {}) {
  const nonce = await publicClient.getTransactionCount({ address: wallet.address });
  return wallet.account.signTransaction({
    type: "eip1559",
    chainId: info.chain_id,
    nonce,
    gas: 3_000_000n,
    maxFeePerGas: 0n,
    maxPriorityFeePerGas: 0n,
    to: contract.address,
    data: encodeFunctionData({ abi: contract.abi, functionName, args }),
    ...overrides,
  });
}

export async function tokenDomain() {
  const address = contracts.tnzo.address;
  return { name: "Tenzro", version: "1", chainId: info.chain_id, verifyingContract: address };
}

const PERMIT = {
  Permit: [
    { name: "owner", type: "address" },
    { name: "spender", type: "address" },
    { name: "value", type: "uint256" },
    { name: "nonce", type: "uint256" },
    { name: "deadline", type: "uint256" },
  ],
};

/** ERC-2612: the arguments v, r, s of a permit. */
export async function permit(wallet, spender, value, deadline = 2n ** 64n) {
  const { tnzo } = contracts;
  const nonce = await publicClient.readContract({
    ...tnzo,
    functionName: "nonces",
    args: [wallet.address],
  });
  const signature = await wallet.signTypedData({
    domain: await tokenDomain(),
    types: PERMIT,
    primaryType: "Permit",
    message: { owner: wallet.address, spender, value, nonce, deadline },
  });
  return { deadline, ...split(signature) };
}

export function split(signature) {
  return {
    r: signature.slice(0, 66),
    s: `0x${signature.slice(66, 130)}`,
    v: Number.parseInt(signature.slice(130), 16),
  };
}

// --- A model server ------------------------------------------------------------------------------

/**
 * Something that answers like a model server. `answer(request, response)` may answer otherwise; `hits` counts
 * requests; with a `challenge` it asks to be paid.
 */
export async function modelServer(models, answer) {
  const server = createServer((request, response) => {
    counted.hits += 1;
    if (answer) return answer(request, response);
    if (request.url === "/v1/chat/completions" && counted.challenge) {
      response.writeHead(402, { "www-authenticate": counted.challenge });
      return response.end();
    }
    if (request.url !== "/v1/models") {
      response.writeHead(404);
      return response.end();
    }
    const data = models.map((model) => ({ object: "model", owned_by: "test", created: 1, ...model }));
    response.writeHead(200, { "content-type": "application/json" });
    return response.end(JSON.stringify({ object: "list", data }));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const counted = {
    hits: 0,
    url: `http://127.0.0.1:${server.address().port}/v1`,
    close() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
  return counted;
}

/** A payment challenge as a model server gives it (docs/payments.md). */
export async function challengeFor(recipient, model) {
  const info = await call("tenzro_networkInfo", []);
  const request = {
    amount: "100000000000000",
    unitType: "llm_token",
    currency: info.contracts.tnzo,
    recipient,
    methodDetails: { chainId: info.chain_id, escrowContract: info.contracts.payment_channels },
    model: { id: model },
  };
  const encoded = Buffer.from(JSON.stringify(request)).toString("base64url");
  const expires = new Date(Date.now() + 60_000).toISOString();
  const parts = { id: "challenge-1", realm: "test", method: "evm", intent: "session", request: encoded, expires };
  return `Payment ${Object.entries(parts).map(([name, value]) => `${name}="${value}"`).join(", ")}`;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until `check` gives something. */
export async function eventually(check, what, ms = 5_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > end) assert.fail(`${what}: not within ${ms} ms`);
    await sleep(20);
  }
}

let last = 0;
/** A text that no other test uses. */
export const unique = (prefix) => `${prefix}-${process.pid}-${++last}`;
