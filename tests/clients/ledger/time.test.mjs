// What takes time, on a node of its own whose clock is turned.
import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import {
  STAKE,
  TNZO,
  asOperator,
  call,
  code,
  contracts,
  info,
  modelServer,
  publicClientAt,
  refused,
  startNode,
} from "./support.mjs";

const node = startNode();
after(() => node.stop());

const client = publicClientAt(node);
const here = { url: node.url };
const operator = { url: node.url, token: node.token };
const ask = (method, params = []) => call(method, params, here);
const act = (method, params = []) => asOperator(method, params, { node });
const own = (await ask("tenzro_networkInfo")).wallet;
const registry = (functionName, args) =>
  client.readContract({ ...contracts.registry, functionName, args });
const later = (seconds) => act("evm_increaseTime", [seconds]);
const DAY = 24 * 3600;

describe("a quiet chain: nothing is mined while time passes", () => {
  test("a second faucet a day later", async () => {
    await ask("tenzro_faucet", []);
    await refused("tenzro_faucet", [], code.TRANSACTION, /once a day/, here);
    await later(DAY);
    await ask("tenzro_faucet", []);
    assert.equal((await ask("tenzro_getBalance")).balance_tnzo, "40000");
  });

  test("staking, hours after the last block", async () => {
    await later(2 * 3600);
    const told = await act("tenzro_stake", [{ amount: "1" }]);
    assert.equal(told.staked, "1");
  });

  test("a price rise holds after its notice, on the ledger and in the node's list", async () => {
    const model = "timely-model";
    const server = await modelServer([{ id: model }]);
    try {
      await act("tenzro_registerProvider", []);
      const pricing = { per_token: "0" };
      await act("tenzro_serveModel", [{ model, endpoint: server.url, remote: true, pricing }]);
      await act("tenzro_setProviderPricing", [model, "1"]);
      assert.equal((await ask("tenzro_getModelEndpoint", [{ model }])).price_per_output_token, "0");
      await later(info.price_delay_seconds + 1);
      assert.equal((await registry("pricing", [own, model])).outputPrice, TNZO);
      // The node reckons by blocks and its own clock, which has not been turned on.
      await act("evm_mine");
      const told = await ask("tenzro_getProviderPricing", [own, model]);
      assert.equal(told.price_per_output_token, String(TNZO));
      assert.equal(told.next_price, null);
      assert.equal((await ask("tenzro_getModelEndpoint", [{ model }])).price_per_output_token, String(TNZO));
    } finally {
      await server.close();
    }
  });

  /** Stakes that much just after a block, so that these tests do not depend on the one above. */
  const stake = async (amount) => {
    await act("evm_mine");
    await act("tenzro_stake", [{ amount: String(amount) }]);
  };
  const stakeNow = async () => {
    const { staked, unbonding } = await registry("provider", [own]);
    return { staked, unbonding, bonded: staked - unbonding };
  };
  const balance = async () => BigInt((await ask("tenzro_getBalance")).balance);

  test("a part of the stake unbonds for 7 days, then the second unstake pays it out", async () => {
    await stake(3n * STAKE);
    const { staked } = await stakeNow();
    const asked = await act("tenzro_unstake", [{ amount: String(STAKE) }]);
    assert.equal(asked.unbonding, String(STAKE));
    assert.equal(asked.is_eligible, true, "2,000 are still bonded");
    await later(7 * DAY + 60);
    const before = await balance();
    const paid = await act("tenzro_unstake", []);
    assert.equal(paid.staked, String(staked - STAKE), "paid out");
    assert.equal(paid.unbonding, "0", "and nothing new was asked for");
    assert.equal(await balance(), before + STAKE);
  });

  test("all of the stake: off the list at once, paid after 7 days", async () => {
    await stake(STAKE);
    const before = (await balance()) + (await stakeNow()).staked;
    const asked = await act("tenzro_unstake", []);
    assert.equal(asked.unbonding, asked.staked);
    assert.equal(asked.is_eligible, false);
    assert.equal(asked.missing.some((one) => one.what === "stake"), true);
    await later(7 * DAY - 60);
    await refused("tenzro_unstake", [], code.TRANSACTION, /unbonding/, operator);
    await later(120);
    const paid = await act("tenzro_unstake", []);
    assert.equal(paid.staked, "0");
    assert.equal(await balance(), before);
  });

  test("with nothing staked, unstaking says so", async () => {
    const fresh = startNode();
    try {
      await refused("tenzro_unstake", [], code.TRANSACTION, /stake/, fresh);
    } finally {
      fresh.stop();
    }
  });
});

describe("development methods", () => {
  test("snapshot and revert, seen by eth_ and tenzro_ alike", async () => {
    const id = await act("evm_snapshot");
    const block = await client.getBlockNumber();
    await act("tenzro_registerProvider", [{ name: "for a while" }]);
    await act("evm_mine", [{ blocks: 5 }]);
    assert.equal(await client.getBlockNumber(), block + 6n);
    assert.equal(await act("evm_revert", [id]), true);
    assert.equal(await client.getBlockNumber(), block);
    assert.notEqual((await registry("provider", [own])).name, "for a while");
    const [told] = await ask("tenzro_listProviders");
    assert.notEqual(told?.name, "for a while");
    assert.equal(await act("evm_revert", [id]), false, "it is used up");
    // The node's wallet goes on with the right nonce.
    await act("tenzro_registerProvider", [{ name: "afterwards" }]);
    assert.equal((await ask("tenzro_listProviders"))[0].name, "afterwards");
  });

  test("blocks and times", async () => {
    const before = await client.getBlock();
    const at = Number(before.timestamp) + 1000;
    await act("evm_setNextBlockTimestamp", [at]);
    await act("evm_mine");
    const block = await client.getBlock();
    assert.equal(Number(block.timestamp), at);
    assert.equal(block.transactions.length, 0);
    await refused("evm_setNextBlockTimestamp", [1], code.INVALID_PARAMS, undefined, operator);
    await refused("evm_increaseTime", [-1], code.INVALID_PARAMS, undefined, operator);
    await refused("evm_increaseTime", ["soon"], code.INVALID_PARAMS, undefined, operator);
    await refused("evm_mine", [{ blocks: 10 ** 9 }], code.INVALID_PARAMS, undefined, operator);
    await refused("evm_revert", [], code.INVALID_PARAMS, undefined, operator);
  });
});

describe("a restart", () => {
  test("forgets nothing", async () => {
    const model = "lasting-model";
    const server = await modelServer([{ id: model }]);
    try {
      await act("tenzro_serveModel", [model, server.url]);
      const facts = async (url) =>
        JSON.stringify([
          await call("eth_getBlockByNumber", ["latest", true], { url }),
          await call("tenzro_getBalance", [], { url }),
          await call("tenzro_getProviderPricing", [], { url }),
          (await call("tenzro_listProviders", [], { url })).map(({ is_open: _, ...rest }) => rest),
          (await call("tenzro_listModelEndpoints", [model], { url })).map((one) => one.endpoint_id),
        ]);
      const before = await facts(node.url);
      node.pause();
      await assert.rejects(fetch(node.url));
      assert.equal(node.start().node.rpc_url, node.url);
      assert.equal(await facts(node.url), before);
      await act("tenzro_registerProvider", [{ name: "the token is still the same" }]);
    } finally {
      await server.close();
    }
  });
});
