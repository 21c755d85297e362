// tenzro_serveModel and tenzro_stopModel against model servers that behave and others that do not.
import assert from "node:assert/strict";
import { createServer } from "node:net";
import { after, afterEach, before, describe, test } from "node:test";
import { keccak256 } from "viem";

import {
  STAKE,
  asOperator,
  balanceOf,
  challengeFor,
  call,
  code,
  contracts,
  eventually,
  info,
  mined,
  modelServer,
  newWallet,
  noInternals,
  node,
  permit,
  publicClient,
  refused,
  registry,
  startNode,
  unique,
} from "./support.mjs";

const own = info.wallet;
const operator = { token: node.token };
const bad = [code.INVALID_PARAMS, code.ENDPOINT];

const listed = (model) => call("tenzro_listModelEndpoints", [{ model }]);
const count = () => registry("endpointCount");

const mortal = unique("mortal-model");
before(async () => {
  // Ends at once: until the last test here the node's probes have time to see it.
  const server = await modelServer([{ id: mortal }]);
  await asOperator("tenzro_serveModel", [mortal, server.url]);
  assert.equal((await listed(mortal))[0].status, "online");
  await server.close();
});

/** Neither kind of serving works, for a reason that names the endpoint; nothing is recorded. */
async function cannotServe(endpoint, message, { model = unique("unservable"), codes = bad } = {}) {
  const [endpoints, block] = [await count(), await publicClient.getBlockNumber()];
  for (const remote of [false, true]) {
    const params = [{ model, endpoint, remote, pricing: { per_token: "0" } }];
    const error = await refused("tenzro_serveModel", params, codes, message, operator);
    assert.match(error.message, /^endpoint/, "names the field");
    if (error.data?.hint) noInternals(error.data.hint);
  }
  assert.deepEqual(await listed(model), []);
  assert.equal(await count(), endpoints);
  assert.equal(await publicClient.getBlockNumber(), block, "nothing was mined");
}

describe("serving for this node only", () => {
  test("is listed, found by id and by model, and gone once stopped", async () => {
    const model = unique("local-model");
    const card = { id: model, quantization: "Q4_0", context_length: 1024, sha256: "ab".repeat(32) };
    const server = await modelServer([card]);
    const block = await publicClient.getBlockNumber();
    try {
      const told = await asOperator("tenzro_serveModel", [{ model_id: model, endpoint: server.url }]);
      assert.equal(told.success, true);
      assert.equal(told.status, "serving");
      assert.equal(told.location, "local");
      assert.equal(told.model_id, model);
      assert.equal(told.api_endpoint, server.url);
      const [one] = await listed(model);
      assert.equal(one.endpoint_id, told.endpoint_id);
      assert.equal(one.api_endpoint, server.url);
      assert.equal(one.provider, null);
      assert.equal(one.location, "local");
      assert.equal(one.status, "online");
      assert.equal(one.price_per_output_token, "0");
      assert.equal(one.quantization, "Q4_0");
      assert.equal(one.context_length, 1024);
      assert.equal(one.model_hash, "ab".repeat(32));
      assert.ok(one.latency_ms >= 0 && one.latency_ms < 5000);
      assert.equal(one.error_rate, 0);
      assert.equal(one.uptime_percent, 100);
      assert.deepEqual(await call("tenzro_getModelEndpoint", [{ model }]), one);
      assert.deepEqual(await call("tenzro_getModelEndpoint", [{ endpoint_id: told.endpoint_id }]), one);
      // Once more is the same.
      const again = await asOperator("tenzro_serveModel", [model, server.url]);
      assert.equal(again.endpoint_id, told.endpoint_id);
      assert.equal((await listed(model)).length, 1);

      const stopped = await asOperator("tenzro_stopModel", [{ model_id: model }]);
      assert.equal(stopped.status, "stopped");
      assert.deepEqual(stopped.endpoint_ids, [told.endpoint_id]);
      assert.deepEqual(await listed(model), []);
      await refused("tenzro_stopModel", [model], code.NOT_FOUND, new RegExp(model), operator);
      assert.equal(await publicClient.getBlockNumber(), block, "the ledger has no part in it");
    } finally {
      await server.close();
    }
  });

  test("every form of parameters; a slash at the end changes nothing", async () => {
    const model = unique("form-model");
    const server = await modelServer([{ id: model, aliases: [`owner/${model}-GGUF`] }]);
    try {
      const forms = [
        [{ model, endpoint: server.url }],
        { model_id: model, endpoint: server.url },
        [{ modelId: model, api_endpoint: server.url }],
        [{ model, apiEndpoint: server.url }],
        [{ model, base_url: `${server.url}/` }],
        [model, server.url],
        [{ model: model.toUpperCase(), endpoint: server.url }],
        [{ model: `owner/${model}-GGUF`, endpoint: server.url }],
        [{ model, endpoint: server.url.replace("127.0.0.1", "localhost") }],
      ];
      for (const params of forms) {
        const told = await asOperator("tenzro_serveModel", params);
        assert.equal(told.model_id, model, JSON.stringify(params));
        await asOperator("tenzro_stopModel", [{ model, endpoint: told.api_endpoint }]);
        assert.deepEqual(await listed(model), []);
      }
    } finally {
      await server.close();
    }
  });

  test("is stopped by its id too", async () => {
    const model = unique("id-model");
    const server = await modelServer([{ id: model }]);
    try {
      const told = await asOperator("tenzro_serveModel", [{ model, endpoint: server.url }]);
      const stopped = await asOperator("tenzro_stopModel", [{ endpoint_id: told.endpoint_id }]);
      assert.deepEqual(stopped.endpoint_ids, [told.endpoint_id]);
      assert.deepEqual(await listed(model), []);
    } finally {
      await asOperator("tenzro_stopModel", [{ model }]).catch(() => {});
      await server.close();
    }
  });

  test("two addresses of one model: one is stopped, the other stays", async () => {
    const model = unique("twin-model");
    const [a, b] = [await modelServer([{ id: model }]), await modelServer([{ id: model }])];
    try {
      await asOperator("tenzro_serveModel", [model, a.url]);
      await asOperator("tenzro_serveModel", [model, b.url]);
      assert.equal((await listed(model)).length, 2);
      await asOperator("tenzro_stopModel", [{ model, endpoint: `${a.url}/` }]);
      assert.deepEqual((await listed(model)).map((one) => one.api_endpoint), [b.url]);
      await asOperator("tenzro_stopModel", [{ model }]);
    } finally {
      await Promise.all([a.close(), b.close()]);
    }
  });

  test("the model's own name is the server's text: no control characters, and not without end", async () => {
    const model = unique("odd-model");
    for (const id of [`${model}\nother`, `${model}\u001b[2J`, `${model}${"x".repeat(10_000)}`]) {
      const server = await modelServer([{ id, aliases: [model] }]);
      try {
        await refused("tenzro_serveModel", [model, server.url], bad, undefined, operator);
        assert.equal((await call("tenzro_listModels", [])).some((one) => one.model_id === id), false);
      } finally {
        await asOperator("tenzro_stopModel", [{ model: id }]).catch(() => {});
        await server.close();
      }
    }
  });

  test("without an endpoint: only a model server of this home", async () => {
    const error = await refused("tenzro_serveModel", [{ model: "m" }], code.INVALID_PARAMS, /^endpoint/, operator);
    assert.match(error.message, /'m'/);
    await refused("tenzro_serveModel", [], code.INVALID_PARAMS, /^model/, operator);
    await refused("tenzro_stopModel", [], code.INVALID_PARAMS, /model/, operator);
  });
});

describe("serving on the ledger", () => {
  test("the whole way to an active endpoint; stopping and serving again", async () => {
    const model = unique("ledger-model");
    const server = await modelServer([{ id: model, sha256: "cd".repeat(32), context_length: 512 }]);
    try {
      if ((await balanceOf(own)) < STAKE) await call("tenzro_faucet", []);
      await asOperator("tenzro_registerProvider", [{ role: "model-provider" }]);
      const { staked, unbonding } = await registry("provider", [own]);
      if (staked - unbonding < STAKE) await asOperator("tenzro_stake", [{ amount: String(STAKE) }]);
      const served = await asOperator("tenzro_serveModel", [{ model, endpoint: server.url, remote: true }]);
      assert.equal(served.location, "network");
      assert.equal(served.is_active, false);
      assert.deepEqual(served.missing, [{ what: "price", model_id: model }]);
      const id = served.endpoint_id;
      await asOperator("tenzro_setProviderPricing", [{ model, per_token: "0.0001" }]);
      const [one] = await listed(model);
      assert.equal(one.endpoint_id, id);
      assert.equal(one.status, "online");
      assert.equal(one.provider, own);
      assert.equal(one.model_hash, "cd".repeat(32));
      assert.equal(one.price_per_output_token, "100000000000000");
      const onChain = await registry("endpoint", [id]);
      assert.deepEqual([onChain.baseUrl, onChain.active], [server.url, true]);

      const stopped = await asOperator("tenzro_stopModel", [{ endpoint_id: id }]);
      assert.deepEqual(stopped.endpoint_ids, [id]);
      await mined(stopped.transaction_hash);
      assert.equal((await listed(model))[0].status, "inactive");
      assert.deepEqual((await listed(model))[0].missing, [{ what: "serving" }]);
      assert.equal((await call("tenzro_listModels", [])).some((entry) => entry.model_id === model), false);
      await refused("tenzro_stopModel", [{ model }], code.NOT_FOUND, undefined, operator);

      // With a price on the ledger the endpoint has to ask for it, and to be paid to that wallet.
      const params = [{ model, endpoint: server.url, remote: true }];
      await refused("tenzro_serveModel", params, code.ENDPOINT, /does not ask to be paid/, operator);
      server.challenge = await challengeFor("0x00000000000000000000000000000000000000aa", model);
      await refused("tenzro_serveModel", params, code.ENDPOINT, /another payee/, operator);
      server.challenge = await challengeFor(own, model);
      const again = await asOperator("tenzro_serveModel", params);
      assert.equal(again.endpoint_id, id);
      assert.equal(again.is_active, true);
      await asOperator("tenzro_stopModel", [model]);
    } finally {
      await server.close();
    }
  });

  test("with a price in the same transaction; the hash of the caller comes first", async () => {
    const model = unique("priced-model");
    const server = await modelServer([{ id: model, sha256: "cd".repeat(32) }]);
    try {
      const hash = keccak256("0x1234");
      const params = [
        { model, endpoint: server.url, remote: true, model_hash: hash, pricing: { input: "0", output: "0.5" } },
      ];
      const block = await publicClient.getBlockNumber();
      await asOperator("tenzro_serveModel", params);
      assert.equal(await publicClient.getBlockNumber(), block + 1n);
      const [one] = await listed(model);
      assert.equal(one.price_per_input_token, "0");
      assert.equal(one.price_per_output_token, "500000000000000000");
      assert.equal(one.model_hash, hash.slice(2));
      await asOperator("tenzro_stopModel", [model]);
    } finally {
      await server.close();
    }
  });

  test("somebody else's endpoint is not stopped", async () => {
    const model = unique("foreign-model");
    const server = await modelServer([{ id: model }]);
    try {
      const wallet = await newWallet();
      const write = (functionName, args) =>
        wallet.writeContract({ ...contracts.registry, functionName, args });
      await mined(await write("register", [1, ""]));
      const { deadline, v, r, s } = await permit(wallet, contracts.registry.address, STAKE);
      await mined(await write("stakeWithPermit", [STAKE, deadline, v, r, s]));
      await mined(await write("setPricing", [model, 1n, 1n]));
      await mined(await write("serveModel", [model, keccak256("0x"), server.url, "{}"]));
      const [one] = await listed(model);
      const refusals = [code.TRANSACTION, code.NOT_FOUND];
      await refused("tenzro_stopModel", [{ model }], refusals, undefined, operator);
      await refused("tenzro_stopModel", [{ endpoint_id: one.endpoint_id }], refusals, /another provider/, operator);
      await refused("tenzro_stopModel", [{ endpoint_id: one.endpoint_id }], code.UNAUTHORIZED);
      const unknown = `0x${"ee".repeat(32)}`;
      await refused("tenzro_stopModel", [{ endpoint_id: unknown }], refusals, /0xeeee/, operator);
      assert.equal(await registry("isActive", [one.endpoint_id]), true);
      assert.equal((await listed(model))[0].missing.length, 0);
    } finally {
      await server.close();
    }
  });
});

describe("endpoints that cannot be", () => {
  const open = [];
  const serverOf = async (answer, models = []) => {
    const server = await modelServer(models, answer);
    open.push(server);
    return server;
  };
  let good;
  const model = unique("good-model");
  before(async () => {
    good = await modelServer([{ id: model }]);
  });
  after(() => good.close());
  afterEach(async () => {
    await Promise.all(open.splice(0).map((server) => server.close()));
  });

  test("nobody listens", async () => {
    await cannotServe("http://127.0.0.1:9/v1", /does not answer/);
    const error = await refused(
      "tenzro_serveModel",
      [{ model: "m", endpoint: "http://127.0.0.1:9/v1" }],
      code.ENDPOINT,
      /127\.0\.0\.1:9/,
      operator,
    );
    assert.match(error.data.hint, /model server/);
    await cannotServe("http://no-such-host.invalid/v1", /no-such-host\.invalid/);
  });

  test("another model: says which it serves", async () => {
    const { hits } = good;
    await cannotServe(good.url, new RegExp(`does not serve .*serves ${model}`));
    assert.ok(good.hits > hits);
    const none = await serverOf();
    await cannotServe(none.url, /does not serve/);
  });

  test("redirects are not followed", async () => {
    const { hits } = good;
    for (const status of [301, 302, 307, 308]) {
      const server = await serverOf((_, response) => {
        response.writeHead(status, { location: `${good.url}/models` });
        response.end();
      });
      await cannotServe(server.url, new RegExp(`answers ${status}`), { model });
    }
    assert.equal(good.hits, hits);
  });

  test("errors, and answers that are none", async () => {
    const answers = [
      [(response) => response.writeHead(500).end("x"), /answers 500/],
      [(response) => response.writeHead(401).end("{}"), /answers 401/],
      [(response) => response.writeHead(402).end("{}"), /answers 402/],
      [(response) => response.writeHead(404).end("{}"), /answers 404/],
      [(response) => response.end("<html>"), /list models/],
      [(response) => response.end("{}"), /list models/],
      [(response) => response.end("[]"), /list models/],
      [(response) => response.end('{"object":"list","data":[{"object":"model","id":5}]}'), /list models/],
      [(response) => response.end(`${'{"a":'.repeat(10_000)}`), /list models/],
      [(response) => response.destroy(), /does not answer/],
    ];
    for (const [answer, message] of answers) {
      const server = await serverOf((_, response) => answer(response));
      await cannotServe(server.url, message);
    }
  });

  test("OpenAI's own list, and one with more or fewer fields, is understood", async () => {
    const plain = unique("plain-model");
    for (const body of [
      { object: "list", data: [{ id: plain, object: "model", created: 1, owned_by: "x" }] },
      { object: "list", data: [{ id: plain, object: "model" }] },
      // Ollama and llama-server add fields of their own.
      { object: "list", models: [{ name: plain }], data: [{ id: plain, object: "model", meta: { n: 1 } }] },
    ]) {
      const server = await serverOf((_, response) => response.end(JSON.stringify(body)));
      await asOperator("tenzro_serveModel", [plain, server.url]);
      await asOperator("tenzro_stopModel", [plain]);
    }
  });

  test("a huge answer is cut off", async () => {
    let sent = 0;
    const server = await serverOf((_, response) => {
      const chunk = Buffer.alloc(256 * 1024, " ");
      const write = () => {
        while (!response.destroyed && sent < 512 * 1024 * 1024) {
          sent += chunk.length;
          if (!response.write(chunk)) return void response.once("drain", write);
        }
        response.end();
      };
      write();
    });
    await cannotServe(server.url, /too large/);
    assert.ok(sent < 64 * 1024 * 1024, `${sent} bytes were taken`);
  });

  test("slow answers are not waited for", { timeout: 60_000 }, async () => {
    const held = (_, response) => response.writeHead(200) && response.flushHeaders();
    const drops = (_, response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write(" "), 100);
      response.on("close", () => clearInterval(timer));
    };
    const started = Date.now();
    const isNotWaitedFor = async (answer) => {
      const server = await serverOf(answer);
      const params = [{ model: "m", endpoint: server.url }];
      const error = await refused("tenzro_serveModel", params, code.ENDPOINT, /does not answer/, operator);
      assert.match(error.message, /time/i, "says that it took too long");
    };
    await Promise.all([() => {}, held, drops].map(isNotWaitedFor));
    const seconds = (Date.now() - started) / 1000;
    assert.ok(seconds < 8, `${seconds} s`);
    assert.deepEqual(await listed("m"), []);
  });

  test("something that speaks no HTTP", { timeout: 30_000 }, async () => {
    const server = createServer((socket) => {
      socket.on("error", () => {});
      socket.end("SSH-2.0-OpenSSH_9.6\r\n");
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      await cannotServe(`http://127.0.0.1:${server.address().port}/v1`, /does not answer/);
    } finally {
      server.close();
    }
  });

  test("addresses that are none", async () => {
    const { hits } = good;
    const { host } = new URL(good.url);
    const long = `http://${host}/${"a".repeat(256)}/v1`;
    const cases = [
      ["", /URL/],
      ["   ", /URL/],
      [host, /URL|http/],
      ["ftp://example.com/v1", /http or https/],
      ["file:///etc/passwd", /http or https/],
      ["javascript:alert(1)//v1", /http or https/],
      [`http://${host}`, /\/v1/],
      [`http://${host}/`, /\/v1/],
      [`http://${host}/v2`, /\/v1/],
      [`http://${host}/v1/chat/completions`, /\/v1/],
      [`http://${host}/xv1`, /\/v1/],
      [`http://user:secret@${host}/v1`, /user or a password/],
      [`http://user@${host}/v1`, /user or a password/],
      [`http://${host}/v1?key=secret`, /query/],
      [`http://${host}/v1#fragment`, /fragment/],
      [long, /256 bytes/],
      [`http://[::1/v1`, /URL/],
      ["http://127.0.0.1:99999/v1", /URL/],
    ];
    for (const [endpoint, message] of cases) {
      await cannotServe(endpoint, message, { model, codes: code.INVALID_PARAMS });
    }
    for (const endpoint of [5, {}, [good.url], true]) {
      await refused("tenzro_serveModel", [{ model, endpoint }], code.INVALID_PARAMS, /^endpoint/, operator);
    }
    assert.equal(good.hits, hits, "none of them was asked");
  });

  test("a password in an address is not repeated", async () => {
    const endpoint = "http://user:hunter2@127.0.0.1:9/v1";
    const params = [{ model: "m", endpoint }];
    const error = await refused("tenzro_serveModel", params, code.INVALID_PARAMS, /^endpoint/, operator);
    assert.doesNotMatch(JSON.stringify(error), /hunter2/);
  });

  test("models that cannot be on the ledger", async () => {
    const names = ["Upper", "with space", "slash/es", "", "x".repeat(97), "ünïcode", ".hidden"];
    for (const name of names) {
      const server = await serverOf(undefined, [{ id: name }]);
      const before = await count();
      const params = [{ model: name, endpoint: server.url, remote: true }];
      await refused("tenzro_serveModel", params, bad, /model/, operator);
      assert.equal(await count(), before);
    }
  });

  test("wrong prices and hashes are found before anything is recorded", async () => {
    const before = await count();
    const wrong = [
      [{ pricing: { per_token: "0.0001x" } }, /pricing.*0\.0001x/],
      [{ pricing: { per_token: "-1" } }, /pricing.*negative/],
      [{ pricing: { per_token: "0.0000000000000000001" } }, /pricing.*18/],
      [{ pricing: { per_token: 0.0001 } }, /pricing/],
      [{ pricing: { input: "1" } }, /pricing/],
      [{ pricing: {} }, /pricing/],
      [{ pricing: "0.0001" }, /pricing/],
      [{ model_hash: "0x12" }, /model_hash/],
      [{ model_hash: 5 }, /model_hash/],
      [{ remote: "yes" }, /remote/],
    ];
    for (const [more, message] of wrong) {
      const params = [{ model, endpoint: good.url, remote: true, ...more }];
      await refused("tenzro_serveModel", params, code.INVALID_PARAMS, message, operator);
    }
    assert.equal(await count(), before);
    assert.deepEqual(await listed(model), []);
  });
});

describe("a node that offers its endpoints to others", () => {
  test("takes none of a private network", async () => {
    const strict = startNode({ TENZRO_NODE_ALLOW_PRIVATE_ENDPOINTS: "false" });
    const model = unique("private-model");
    const server = await modelServer([{ id: model }]);
    try {
      const { port } = new URL(server.url);
      const hosts = ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "127.1"];
      hosts.push("169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1");
      for (const host of hosts) {
        const params = [{ model, endpoint: `http://${host}:${port}/v1` }];
        await refused("tenzro_serveModel", params, bad, /private network/, strict);
      }
      assert.equal(server.hits, 0, "none of them was asked");
      assert.deepEqual(await call("tenzro_listModelEndpoints", [], { url: strict.url }), []);
    } finally {
      strict.stop();
      await server.close();
    }
  });
});

describe("an endpoint that went away", () => {
  test("is told so by the node's probes", { timeout: 60_000 }, async () => {
    const isOffline = async () => {
      const [one] = await listed(mortal);
      return one.status === "offline" && one;
    };
    const gone = await eventually(isOffline, "offline", 40_000);
    assert.ok(gone.error_rate > 0 && gone.uptime_percent < 100);
    const models = await call("tenzro_listModels", []);
    assert.equal(models.find((one) => one.model_id === mortal).online, 0);
    await asOperator("tenzro_stopModel", [mortal]);
  });
});
