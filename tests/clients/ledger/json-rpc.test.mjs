// JSON-RPC 2.0 itself, over HTTP: what is no call, batches, notifications, limits, and who may call.
import assert from "node:assert/strict";
import { request } from "node:http";
import { connect } from "node:net";
import { afterEach, describe, test } from "node:test";
import { pad, toHex } from "viem";

import { ask, asOperator, call, code, info, node, noInternals, post, refused, startNode } from "./support.mjs";

let addresses = 2 ** 40;
const chainId = { jsonrpc: "2.0", id: 1, method: "eth_chainId", params: [] };

afterEach(async () => {
  assert.equal(await call("eth_chainId", []), "0x539", "the node lives");
});

/** The answer is one error with a null id, unless told otherwise. */
function isError(answer, expected, id = null) {
  assert.equal(answer.json.jsonrpc, "2.0");
  assert.equal(answer.json.error?.code, expected, answer.text.slice(0, 300));
  assert.deepEqual(answer.json.id, id);
  assert.equal("result" in answer.json, false);
  noInternals(answer.json.error.message);
}

describe("calls", () => {
  test("the id comes back as it was, whatever it is", async () => {
    for (const id of [1, 0, -5, 1.5, "a", "", "7", null, 2 ** 53 - 1]) {
      const { json } = await post({ ...chainId, id });
      assert.deepEqual(json, { jsonrpc: "2.0", id, result: "0x539" });
    }
    const { text } = await post('{"jsonrpc":"2.0","id":18446744073709551615,"method":"eth_chainId"}');
    assert.match(text, /"id":18446744073709551615[,}]/);
  });

  test("an id of another type is refused", async () => {
    for (const id of [{}, [], [1], true, false, { a: 1 }]) {
      isError(await post({ ...chainId, id }), code.INVALID_REQUEST);
    }
  });

  test("params may be left out, null, a list or an object", async () => {
    for (const params of [undefined, null, [], [{}], {}]) {
      const { json } = await post({ jsonrpc: "2.0", id: 1, method: "tenzro_networkInfo", params });
      assert.equal(json.result.chain_id, 1337, JSON.stringify(params));
    }
    for (const params of ["x", 7, true]) {
      isError(await post({ ...chainId, params }), code.INVALID_REQUEST, 1);
    }
  });

  test("another version, no version, no method, no object", async () => {
    for (const jsonrpc of ["1.0", "2", 2, null, undefined, ""]) {
      isError(await post({ ...chainId, jsonrpc }), code.INVALID_REQUEST, 1);
    }
    for (const method of [undefined, null, 5, {}, ["eth_chainId"]]) {
      isError(await post({ ...chainId, method }), code.INVALID_REQUEST, 1);
    }
    for (const body of ["1", '"x"', "null", "true"]) {
      isError(await post(body), code.INVALID_REQUEST);
    }
  });

  test("fields that nobody knows are no harm", async () => {
    const { json } = await post({ ...chainId, extra: { a: [1] } });
    assert.equal(json.result, "0x539");
  });

  test("unknown methods, and those that act with keys of a node", async () => {
    const methods = [
      "tenzro_nothing",
      "",
      "ETH_CHAINID",
      " eth_chainId",
      "eth_chainId\u0000",
      "rpc.discover",
      "eth_sendTransaction",
      "eth_sign",
      "eth_signTransaction",
      "eth_signTypedData_v4",
      "personal_sign",
      "personal_listAccounts",
      "personal_unlockAccount",
      "anvil_setBalance",
      "anvil_impersonateAccount",
      "hardhat_setBalance",
      "debug_traceTransaction",
      "admin_peers",
      "miner_start",
      "txpool_content",
      "evm_setAccountNonce",
      "tenzro_exportKey",
    ];
    for (const method of methods) {
      for (const token of [undefined, node.token]) {
        const error = await refused(method, [], code.METHOD_NOT_FOUND, /no method/, { token });
        assert.ok(error.message.includes(method.slice(0, 20)) || method === "");
      }
    }
    const long = "x".repeat(100_000);
    await refused(long, [], code.METHOD_NOT_FOUND);
  });

  test("what is not JSON", async () => {
    for (const body of ["{", "", " ", "{]", '{"a":1,}', "{'a':1}", "\u0000", '{"jsonrpc":"2.0"', "NaN"]) {
      isError(await post(body), code.PARSE);
    }
    isError(await post(new Uint8Array([0xff, 0xfe, 0x7b])), code.PARSE);
    isError(await post(`${JSON.stringify(chainId)}x`), code.PARSE);
  });

  test("deep nesting", async () => {
    for (const depth of [200, 100_000]) {
      isError(await post("[".repeat(depth)), code.PARSE);
      isError(await post("[".repeat(depth) + "]".repeat(depth)), code.PARSE);
      const params = '{"a":'.repeat(depth) + "1" + "}".repeat(depth);
      isError(await post(`{"jsonrpc":"2.0","id":1,"method":"m","params":[${params}]}`), code.PARSE);
    }
  });
});

describe("notifications", () => {
  test("are carried out and not answered", async () => {
    for (const method of ["eth_chainId", "tenzro_nothing"]) {
      const { status, text } = await post({ jsonrpc: "2.0", method, params: [] });
      assert.equal(status, 204);
      assert.equal(text, "");
    }
    const { status, text } = await post([
      { jsonrpc: "2.0", method: "eth_chainId" },
      { jsonrpc: "2.0", method: "tenzro_nothing" },
    ]);
    assert.equal(status, 204);
    assert.equal(text, "");
  });

  test("one that changes something does so, and only for the operator", async () => {
    const name = `notified ${process.pid}`;
    const body = { jsonrpc: "2.0", method: "tenzro_registerProvider", params: [{ name }] };
    const nameNow = async () => {
      const providers = await call("tenzro_listProviders", []);
      return providers.find((one) => one.provider === info.wallet)?.name;
    };
    await post(body);
    assert.notEqual(await nameNow(), name);
    await post(body, { token: node.token });
    assert.equal(await nameNow(), name);
    await asOperator("tenzro_deregisterProvider", []);
  });
});

describe("batches", () => {
  test("mixed: answers in order, none for notifications, errors in their places", async () => {
    const { status, json } = await post([
      { ...chainId, id: "a" },
      { jsonrpc: "2.0", method: "eth_chainId" },
      7,
      { ...chainId, id: 2, method: "tenzro_nothing" },
      { jsonrpc: "1.0", id: 3, method: "eth_chainId" },
      { ...chainId, id: null },
      { ...chainId, id: 4, method: "tenzro_networkInfo" },
      [],
    ]);
    assert.equal(status, 200);
    assert.deepEqual(json.map((one) => one.id), ["a", null, 2, 3, null, 4, null]);
    assert.deepEqual(
      json.map((one) => one.error?.code),
      [undefined, -32600, -32601, -32600, undefined, undefined, -32600],
    );
    assert.equal(json[0].result, "0x539");
    assert.equal(json[5].result.chain_id, 1337);
  });

  test("empty, and too long", async () => {
    isError(await post([]), code.INVALID_REQUEST);
    const long = Array.from({ length: 5_000 }, (_, id) => ({ ...chainId, id }));
    isError(await post(long), code.INVALID_REQUEST);
  });

  test("one of a hundred, as ethers sends them", async () => {
    const { json } = await post(Array.from({ length: 100 }, (_, id) => ({ ...chainId, id })));
    assert.deepEqual(json.map((one) => one.id), Array.from({ length: 100 }, (_, id) => id));
    assert.ok(json.every((one) => one.result === "0x539"));
  });

  test("an answer has an end: a batch of large ones does not take the node's memory", async () => {
    const drip = (id) => ({ ...chainId, id, method: "tenzro_faucet", params: [pad(toHex(++addresses), { size: 20 })] });
    for (let i = 0; i < 10; i += 1) await post(Array.from({ length: 100 }, (_, id) => drip(id)));
    const logs = (id) => ({ ...chainId, id, method: "eth_getLogs", params: [{ fromBlock: "0x0" }] });
    const one = (await post(logs(1))).text.length;
    assert.ok(one > 500_000, "the test needs an answer of some size");
    const { text, json } = await post(Array.from({ length: 100 }, (_, id) => logs(id)));
    assert.equal(json.length, 100);
    assert.ok(json[0].result.length >= 1000);
    const megabytes = text.length / 1e6;
    assert.ok(megabytes < 26 + one / 1e6, `${megabytes} MB`);
    noInternals(json[99].error.message);
  });

  test("a batch is its caller's: no call in it has more rights", async () => {
    const stake = { jsonrpc: "2.0", id: 1, method: "tenzro_stake", params: [{ amount: "1" }] };
    const { json } = await post([chainId, stake]);
    assert.equal(json[1].error.code, code.UNAUTHORIZED);
  });
});

describe("HTTP", () => {
  test("answers are JSON, status 200, with a request id", async () => {
    const { status, headers } = await post(chainId);
    assert.equal(status, 200);
    assert.match(headers.get("content-type"), /^application\/json/);
    assert.ok(headers.get("x-request-id"));
  });

  test("content types", async () => {
    for (const type of ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json-rpc+json"]) {
      const { json } = await post(chainId, { headers: { "content-type": type } });
      assert.equal(json.result, "0x539", type);
    }
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/html"]) {
      const answer = await post(chainId, { headers: { "content-type": type } });
      assert.equal(answer.status, 415, type);
      isError(answer, code.INVALID_REQUEST);
    }
    const compressed = await post(chainId, { headers: { "content-encoding": "gzip" } });
    assert.equal(compressed.status, 415);
    isError(compressed, code.INVALID_REQUEST);
  });

  test("bodies up to 2 MiB", async () => {
    const padded = (bytes) => {
      const body = JSON.stringify({ ...chainId, pad: "" });
      return JSON.stringify({ ...chainId, pad: "x".repeat(bytes - body.length) });
    };
    const limit = 2 * 1024 * 1024;
    assert.equal((await post(padded(limit))).json.result, "0x539");
    for (const size of [limit + 1, 4 * limit]) {
      const answer = await post(padded(size));
      assert.equal(answer.status, 413);
      isError(answer, code.INVALID_REQUEST);
      assert.match(answer.json.error.message, /larger than 2097152 bytes/);
    }
  });

  test("a chunked body has the same limit", async () => {
    const answer = await new Promise((resolve, reject) => {
      const outgoing = request(
        node.url,
        { method: "POST", headers: { "content-type": "application/json" } },
        (incoming) => {
          let text = "";
          incoming.on("data", (chunk) => (text += chunk));
          incoming.on("end", () => resolve({ status: incoming.statusCode, text, json: JSON.parse(text) }));
        },
      );
      outgoing.on("error", reject);
      for (let i = 0; i < 48; i += 1) outgoing.write(" ".repeat(64 * 1024));
      outgoing.end();
    });
    assert.equal(answer.status, 413);
    isError(answer, code.INVALID_REQUEST);
  });

  test("other methods and paths say what is meant", async () => {
    for (const method of ["PUT", "DELETE", "PATCH"]) {
      const response = await fetch(node.url, { method });
      assert.equal(response.status, 405, method);
      assert.match(response.headers.get("allow") ?? "", /POST/, method);
    }
    const unknown = await fetch(`${node.url}/nothing`, { method: "POST", body: JSON.stringify(chainId) });
    assert.equal(unknown.status, 404);
    assert.equal((await fetch(`${node.url}/health`)).status, 200);
  });

  test("connections that break off or never end", async () => {
    const { port } = new URL(node.url);
    const head = `POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"jso`;
    const sockets = Array.from({ length: 20 }, () => {
      const socket = connect(Number(port), "127.0.0.1");
      socket.on("error", () => {});
      socket.write(head);
      return socket;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.equal(await call("eth_chainId", []), "0x539", "others are served meanwhile");
    for (const socket of sockets) socket.destroy();
  });
});

describe("pages of other origins", () => {
  // fetch sets no Origin by itself here; http.request sends what it is told.
  const from = (origin, method = "eth_chainId", url = node.url) =>
    new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json", origin };
      const outgoing = request(url, { method: "POST", headers }, (incoming) => {
        let text = "";
        incoming.on("data", (chunk) => (text += chunk));
        incoming.on("end", () =>
          resolve({ status: incoming.statusCode, headers: incoming.headers, text, json: JSON.parse(text) }),
        );
      });
      outgoing.on("error", reject);
      outgoing.end(JSON.stringify({ ...chainId, method }));
    });

  test("are refused, whatever they call", async () => {
    const origins = [
      "https://example.com",
      "null",
      "http://localhost.example.com",
      "http://127.0.0.1.nip.io:8545",
      "http://localhost@example.com",
      "file://",
      "chrome-extension://abc",
      "http://0.0.0.0:1",
      "http://[::ffff:127.0.0.1]",
      "",
    ];
    for (const origin of origins) {
      for (const method of ["eth_chainId", "tenzro_nothing"]) {
        const answer = await from(origin, method);
        assert.equal(answer.status, 403, origin);
        isError(answer, code.UNAUTHORIZED);
        assert.equal(answer.headers["access-control-allow-origin"], undefined);
      }
    }
  });

  test("of this machine may call", async () => {
    for (const origin of ["http://localhost:3000", "http://127.0.0.1:8545", "https://localhost", "http://[::1]:1"]) {
      const { status, json } = await from(origin);
      assert.equal(status, 200, origin);
      assert.equal(json.result, "0x539");
    }
  });

  test("may call where the operator allows it, and then get CORS headers", async () => {
    const open = startNode({ TENZRO_NODE_CORS: "true" });
    try {
      const answer = await from("https://example.com", "eth_chainId", open.url);
      assert.equal(answer.json.result, "0x539");
      assert.match(answer.headers["access-control-allow-origin"], /^(\*|https:\/\/example\.com)$/);
      assert.notEqual(answer.headers["access-control-allow-credentials"], "true");
    } finally {
      open.stop();
    }
  });

  test("get no CORS headers before they ask", async () => {
    const response = await fetch(node.url, {
      method: "OPTIONS",
      headers: { "access-control-request-method": "POST", "access-control-request-headers": "authorization" },
    });
    assert.equal(response.headers.get("access-control-allow-origin"), null);
  });
});

describe("who may call", () => {
  const writes = [
    ["tenzro_registerProvider", [{ role: "model-provider", name: "x" }]],
    ["tenzro_deregisterProvider", []],
    ["tenzro_stake", [{ amount: "1000" }]],
    ["tenzro_unstake", [{ amount: "1000" }]],
    ["tenzro_setProviderPricing", [{ model: "m", per_token: "1" }]],
    ["tenzro_setProviderSchedule", [{ timezone: "UTC", hours: "0-24" }]],
    ["tenzro_serveModel", [{ model: "m", endpoint: "http://127.0.0.1:9/v1" }]],
    ["tenzro_serveModel", [{ model: "m", endpoint: "http://127.0.0.1:9/v1", remote: true }]],
    ["tenzro_stopModel", [{ model: "m" }]],
    ["evm_mine", []],
    ["evm_increaseTime", [1]],
    ["evm_setNextBlockTimestamp", [2_000_000_000]],
    ["evm_snapshot", []],
    ["evm_revert", ["0x1"]],
  ];

  test("writes need the operator's token, and say how to go on without", async () => {
    const block = await call("eth_blockNumber", []);
    const tokens = [
      undefined,
      "",
      "wrong",
      node.token.slice(1),
      `${node.token}0`,
      node.token.toUpperCase(),
      "a".repeat(7_000),
    ];
    for (const [method, params] of writes) {
      for (const token of tokens) {
        const error = await refused(method, params, code.UNAUTHORIZED, /operator/, { token });
        assert.match(error.data.hint, /signed_transactions/);
        assert.match(error.data.hint, /rpc\.token/);
        assert.match(error.data.hint, /Bearer/);
      }
    }
    assert.equal(await call("eth_blockNumber", []), block, "nothing was mined");
  });

  test("signed_transactions that are empty are none", async () => {
    for (const signed_transactions of [[], null]) {
      const params = [{ name: "x", signed_transactions }];
      const { error } = await ask("tenzro_registerProvider", params);
      assert.equal(error?.code, code.UNAUTHORIZED, JSON.stringify(error));
    }
  });

  test("the token opens them; its scheme has no case (RFC 9110)", async () => {
    assert.match(await asOperator("evm_snapshot", []), /^0x/);
    const { json } = await post(
      { jsonrpc: "2.0", id: 1, method: "evm_snapshot", params: [] },
      { headers: { authorization: `bearer ${node.token}` } },
    );
    assert.match(json.result ?? JSON.stringify(json.error), /^0x/);
  });

  test("reads are open, also with a wrong token", async () => {
    const reads = [
      ["tenzro_networkInfo", []],
      ["tenzro_listModels", []],
      ["tenzro_listModelEndpoints", []],
      ["tenzro_listProviders", []],
      ["tenzro_getProviderPricing", []],
      ["tenzro_getProviderSchedule", []],
      ["tenzro_getBalance", []],
      ["eth_blockNumber", []],
    ];
    for (const [method, params] of reads) {
      await call(method, params);
      await call(method, params, { token: "wrong" });
    }
  });

  test("no answer holds the token or a key", async () => {
    const shown = JSON.stringify([
      await call("tenzro_networkInfo", []),
      await asOperator("tenzro_networkInfo", []),
      await (await fetch(`${node.url}/metrics`)).text(),
      await (await fetch(`${node.url}/health`)).text(),
    ]);
    assert.equal(shown.includes(node.token), false);
    assert.doesNotMatch(shown, /private|secret|mnemonic/i);
  });

  test("metrics have no labels that callers make up", async () => {
    const made = `made_up_${process.pid}`;
    await ask(made, []);
    await ask("eth_getBalance", [made]);
    const page = await (await fetch(`${node.url}/metrics`)).text();
    assert.equal(page.includes(made), false);
    assert.match(page, /tenzro_rpc_calls/);
  });
});
