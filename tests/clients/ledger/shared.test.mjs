// A second node, in a home of its own, on the chain that the first one holds.
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";
import { getAddress } from "viem";

import {
  DRIP,
  STAKE,
  TNZO,
  ask as rawAsk,
  asOperator,
  balanceOf,
  call,
  code,
  contracts,
  eventually,
  info,
  mined,
  modelServer,
  newWallet,
  publicClientAt,
  refused,
  registry,
  sign,
  startNode,
  unique,
} from "./support.mjs";

const first = startNode();
const second = startNode({}, ["--chain", first.url]);
after(() => {
  second.stop();
  first.stop();
});

const ask = (method, params = []) => call(method, params, { url: second.url });
const act = (method, params = []) => asOperator(method, params, { node: second });

describe("on a shared chain", () => {
  test("both say the same about it", async () => {
    const there = await call("tenzro_networkInfo", [], { url: first.url });
    const here = await ask("tenzro_networkInfo");
    assert.equal(here.chain, "remote");
    assert.equal(here.chain_id, there.chain_id);
    assert.deepEqual(here.contracts, there.contracts);
    assert.equal(here.minimum_stake, there.minimum_stake);
    assert.notEqual(here.wallet, there.wallet);
    for (const [method, params] of [
      ["eth_chainId", []],
      ["eth_blockNumber", []],
      ["eth_getBlockByNumber", ["0x5", true]],
      ["net_version", []],
      ["web3_clientVersion", []],
    ]) {
      assert.deepEqual(await ask(method, params), await call(method, params, { url: first.url }), method);
    }
  });

  test("viem works against the second as against the first", async () => {
    const wallet = await newWallet({ at: second });
    const { tnzo } = contracts;
    const client = publicClientAt(second);
    const request = { ...tnzo, functionName: "transfer", args: [tnzo.address, TNZO] };
    await mined(await wallet.writeContract(request), client);
    const read = { ...tnzo, functionName: "balanceOf", args: [wallet.address] };
    assert.equal(await client.readContract(read), DRIP - TNZO);
    assert.equal(await publicClientAt(first).readContract(read), DRIP - TNZO);
    const tooMuch = { ...request, args: [tnzo.address, DRIP], account: wallet.account };
    const error = await client.simulateContract(tooMuch).then(
      () => assert.fail("it worked"),
      (error) => error,
    );
    assert.match(error.message, /ERC20InsufficientBalance/);
    const filter = await client.createContractEventFilter({ ...tnzo, eventName: "Transfer" });
    await mined(await wallet.writeContract(request), client);
    assert.equal((await client.getFilterChanges({ filter })).length, 1);
  });

  test("who may call is each node's own matter", async () => {
    await refused("tenzro_registerProvider", [{}], code.UNAUTHORIZED, undefined, {
      url: second.url,
      token: first.token,
    });
    await refused("tenzro_registerProvider", [{}], code.UNAUTHORIZED, undefined, { url: second.url });
    for (const token of [undefined, second.token, first.token]) {
      const methods = ["evm_mine", "evm_increaseTime", "evm_snapshot", "eth_sendTransaction", "anvil_mine"];
      for (const method of methods) {
        await refused(method, [], [code.METHOD_NOT_FOUND, code.UNAUTHORIZED], undefined, {
          url: second.url,
          token,
        });
      }
    }
  });

  test("a provider of the second is listed by the first, at once; by the second, soon", async () => {
    const own = (await ask("tenzro_networkInfo")).wallet;
    await act("tenzro_faucet", [own]);
    const model = unique("shared-model");
    const server = await modelServer([{ id: model }]);
    try {
      await act("tenzro_registerProvider", [{ name: "second" }]);
      await act("tenzro_stake", [{ amount: String(STAKE) }]);
      const pricing = { per_token: "0" };
      const served = await act("tenzro_serveModel", [{ model, endpoint: server.url, remote: true, pricing }]);
      assert.equal(served.is_active, true);
      assert.equal(getAddress(served.provider), own);
      const [seen] = await call("tenzro_listModelEndpoints", [model], { url: first.url });
      assert.equal(seen.endpoint_id, served.endpoint_id);
      assert.equal(seen.provider_name, "second");
      const [soon] = await eventually(
        async () => {
          const found = await ask("tenzro_listModelEndpoints", [model]);
          return found.length > 0 && found;
        },
        "listed by the second",
        15_000,
      );
      assert.equal(soon.endpoint_id, served.endpoint_id);
      // The first one's operator cannot take it off.
      const refusals = [code.TRANSACTION, code.NOT_FOUND];
      const params = [{ endpoint_id: served.endpoint_id }];
      await refused("tenzro_stopModel", params, refusals, undefined, first);
      await act("tenzro_stopModel", params);
      const [stopped] = await call("tenzro_listModelEndpoints", [model], { url: first.url });
      assert.equal(stopped.status, "inactive");
    } finally {
      await server.close();
    }
  });

  test("the faucet of a chain elsewhere costs gas there: for the operator only", async () => {
    const { address } = await newWallet({ funded: false });
    await refused("tenzro_faucet", [address], code.UNAUTHORIZED, undefined, { url: second.url });
    await act("tenzro_faucet", [address]);
    assert.equal((await ask("tenzro_getBalance", [address])).balance, String(DRIP));
  });

  test("the chain goes away and comes back", { timeout: 60_000 }, async () => {
    const raw = await sign(await newWallet({ funded: false }), contracts.registry, "register", [1, ""]);
    first.pause();
    try {
      const calls = [
        ["eth_blockNumber", []],
        ["eth_sendRawTransaction", [raw]],
        ["tenzro_getBalance", []],
        ["tenzro_registerProvider", [{}], second.token],
        ["tenzro_stake", [{ amount: "1" }], second.token],
        ["tenzro_unstake", [{ amount: "1" }], second.token],
        ["tenzro_stopModel", [{ model: "m" }], second.token],
        ["tenzro_registerProvider", [{ signed_transactions: [raw] }]],
      ];
      const answers = calls.map(async ([method, params, token]) => {
        const { error } = await rawAsk(method, params, { url: second.url, token });
        return [method, error?.code, error?.message];
      });
      const told = await Promise.all(answers);
      const wrong = told.filter(([, number]) => number !== -32006);
      // The address of a hosted chain often holds its key.
      const shown = told.filter(([, , message]) => message.includes(new URL(first.url).host));
      const expected = { wrong: [], shown: [] };
      assert.deepEqual({ wrong, shown }, expected, "the ledger does not answer, and nobody is told where it is");
      assert.equal((await fetch(`${second.url}/health`)).status, 200);
      // What it knows it still tells, with its age.
      assert.ok(Array.isArray(await ask("tenzro_listProviders")));
      assert.equal((await ask("tenzro_networkInfo")).chain_id, 1337);
    } finally {
      first.start();
    }
    assert.equal(await ask("eth_chainId"), "0x539");
    const result = await act("tenzro_registerProvider", [{ name: "back" }]);
    assert.equal(result.name, "back");
    await eventually(
      async () => (await ask("tenzro_listProviders")).some((one) => one.name === "back"),
      "follows again",
      30_000,
    );
  });
});

test("a signed transaction may be handed to either node", async () => {
  // `sign` reads nonces from the node of the other tests: a new wallet has none on either chain.
  const wallet = await newWallet({ funded: false });
  const raw = await sign(wallet, contracts.registry, "register", [1, "either"]);
  const told = await call("tenzro_registerProvider", [{ signed_transactions: [raw] }], { url: second.url });
  assert.equal(told.name, "either");
  // The chain of the other tests is another chain with the same id: the same transaction holds there too.
  await call("tenzro_registerProvider", [{ signed_transactions: [raw] }]);
  assert.equal((await registry("provider", [wallet.address])).name, "either");
  assert.equal(await balanceOf(wallet.address), 0n);
  assert.equal(info.chain_id, 1337);
});
