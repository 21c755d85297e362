// Writes with transactions that the caller signed and nobody sent before.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { encodeFunctionData, keccak256 } from "viem";

import {
  STAKE,
  balanceOf,
  call,
  code,
  contracts,
  info,
  mined,
  modelServer,
  newWallet,
  permit,
  publicClient,
  refused,
  registry,
  sign,
  unique,
} from "./support.mjs";

const { registry: contract, tnzo } = contracts;
const refusals = [code.INVALID_PARAMS, code.TRANSACTION];

const nonceOf = (wallet) => publicClient.getTransactionCount({ address: wallet.address });

let model;
let server;
before(async () => {
  model = unique("signed-model");
  server = await modelServer([{ id: model, quantization: "Q8_0", context_length: 2048 }]);
});
after(() => server.close());

describe("a provider that signs for itself", () => {
  test("registers, stakes, prices, opens and serves; is listed; stops; leaves", async () => {
    const wallet = await newWallet();
    const send = async (method, more, functionName, args) => {
      const raw = await sign(wallet, contract, functionName, args);
      const told = await call(method, [{ ...more, signed_transactions: [raw] }]);
      assert.equal(told.transaction_hash, keccak256(raw));
      await mined(told.transaction_hash);
      return told;
    };
    const registered = await send("tenzro_registerProvider", { role: "model-provider" }, "register", [1, "signed"]);
    assert.equal(registered.provider, wallet.address);
    assert.equal(registered.name, "signed");
    assert.equal(registered.status, "inactive");

    const served = await send("tenzro_serveModel", { model_id: model, endpoint: server.url }, "serveModel", [
      model,
      keccak256("0x01"),
      server.url,
      '{"quantization":"Q8_0","context_length":2048}',
    ]);
    assert.equal(served.location, "network");
    assert.equal(served.is_active, false);
    const missing = served.missing.map((one) => one.what).sort();
    assert.deepEqual(missing, ["price", "stake"]);
    const id = served.endpoint_id;
    assert.equal((await call("tenzro_getModelEndpoint", [id])).status, "inactive");

    const { deadline, v, r, s } = await permit(wallet, contract.address, STAKE);
    const staked = await send("tenzro_stake", {}, "stakeWithPermit", [STAKE, deadline, v, r, s]);
    assert.equal(staked.staked, String(STAKE));
    assert.equal(staked.is_eligible, true);
    await send("tenzro_setProviderPricing", {}, "setPricing", [model, 5n, 6n]);
    await send("tenzro_setProviderSchedule", {}, "setSchedule", ["UTC", 0, 1440, 127]);
    const told = await call("tenzro_getModelEndpoint", [{ endpoint_id: id }]);
    assert.equal(told.status, "online");
    assert.equal(told.price_per_input_token, "5");
    assert.equal(told.provider, wallet.address);
    assert.equal(told.location, "network");
    assert.equal(told.quantization, "Q8_0");
    assert.equal(told.context_length, 2048);
    assert.equal(told.model_hash, keccak256("0x01").slice(2));
    const models = await call("tenzro_listModels", []);
    const listed = models.find((one) => one.model_id === model);
    assert.deepEqual([listed.online, listed.cheapest_output_token], [1, "6"]);

    const stopped = await send("tenzro_stopModel", { endpoint_id: id }, "stopModel", [id]);
    assert.equal(stopped.status, "stopped");
    assert.equal((await call("tenzro_getModelEndpoint", [id])).status, "inactive");
    await send("tenzro_unstake", {}, "requestUnstake", [STAKE]);
    const left = await send("tenzro_deregisterProvider", {}, "deregister", []);
    assert.equal(left.is_registered, false);
    assert.equal(await nonceOf(wallet), 9);
  });

  test("several transactions in one call, in their order", async () => {
    const wallet = await newWallet();
    const { deadline, v, r, s } = await permit(wallet, contract.address, STAKE);
    const nonce = await nonceOf(wallet);
    const signed_transactions = [
      await sign(wallet, contract, "register", [1, "several"], { nonce }),
      await sign(wallet, contract, "stakeWithPermit", [STAKE, deadline, v, r, s], { nonce: nonce + 1 }),
    ];
    const told = await call("tenzro_registerProvider", [{ signed_transactions }]);
    assert.equal(told.is_eligible, true);
    assert.equal(told.transaction_hash, keccak256(signed_transactions[1]));
  });

  test("the name signedTransactions, and bare parameters, will do", async () => {
    const wallet = await newWallet();
    const raw = await sign(wallet, contract, "register", [1, "camel"]);
    assert.equal((await call("tenzro_registerProvider", { signedTransactions: [raw] })).name, "camel");
  });

  test("legacy and EIP-2930 transactions", async () => {
    const wallet = await newWallet();
    for (const [type, fees] of [
      ["legacy", { gasPrice: 0n }],
      ["eip2930", { gasPrice: 0n, accessList: [] }],
    ]) {
      const more = { type, maxFeePerGas: undefined, maxPriorityFeePerGas: undefined, ...fees };
      const raw = await sign(wallet, contract, "register", [1, type], more);
      assert.equal((await call("tenzro_registerProvider", [{ signed_transactions: [raw] }])).name, type);
    }
  });

  test("what was sent before is answered once more, and does not count twice", async () => {
    const wallet = await newWallet();
    const raw = await sign(wallet, contract, "register", [1, "twice"]);
    await mined(await publicClient.sendRawTransaction({ serializedTransaction: raw }));
    const told = await call("tenzro_registerProvider", [{ signed_transactions: [raw] }]);
    assert.equal(told.transaction_hash, keccak256(raw));
    assert.equal(await nonceOf(wallet), 2);
  });
});

describe("what is refused, with nothing changed", () => {
  let wallet;
  before(async () => {
    wallet = await newWallet();
  });

  const nothingChanged = async (work) => {
    const [nonce, balance, block] = [
      await nonceOf(wallet),
      await balanceOf(wallet.address),
      await publicClient.getBlockNumber(),
    ];
    await work();
    assert.equal(await nonceOf(wallet), nonce);
    assert.equal(await balanceOf(wallet.address), balance);
    assert.equal(await publicClient.getBlockNumber(), block, "no block was mined");
  };

  test("garbage names the field", async () => {
    const raw = await sign(wallet, contract, "register", [1, ""]);
    const cases = [
      ["0x"],
      ["0x00"],
      [raw.slice(0, -2)],
      [`${raw}00`],
      ["not hexadecimal"],
      [raw.slice(2).replace(/.$/, "z")],
      [5],
      [null],
      raw,
      { raw },
      [[raw]],
      ["0x03aabb"],
      ["0x04aabb"],
      [`0x${"00".repeat(200_000)}`],
    ];
    await nothingChanged(async () => {
      for (const signed_transactions of cases) {
        const params = [{ signed_transactions }];
        await refused("tenzro_registerProvider", params, code.INVALID_PARAMS, /^signed_transactions/);
      }
    });
  });

  test("for a foreign chain, or for none", async () => {
    await nothingChanged(async () => {
      for (const chainId of [1, 31337, 1338]) {
        const raw = await sign(wallet, contract, "register", [1, ""], { chainId });
        const error = await refused("tenzro_registerProvider", [{ signed_transactions: [raw] }], refusals);
        assert.match(error.message, /chain id/);
        assert.match(error.message, /1337/);
      }
      const legacy = { type: "legacy", maxFeePerGas: undefined, maxPriorityFeePerGas: undefined, gasPrice: 0n };
      const raw = await sign(wallet, contract, "register", [1, ""], { ...legacy, chainId: undefined });
      const params = [{ signed_transactions: [raw] }];
      await refused("tenzro_registerProvider", params, refusals, /replay|chain id/);
    });
  });

  test("a foreign chain in the second: the first is not sent", async () => {
    const nonce = await nonceOf(wallet);
    const signed_transactions = [
      await sign(wallet, contract, "register", [1, "half"], { nonce }),
      await sign(wallet, contract, "register", [1, "other"], { nonce: nonce + 1, chainId: 1 }),
    ];
    await nothingChanged(() => refused("tenzro_registerProvider", [{ signed_transactions }], refusals, /chain id/));
    assert.equal((await registry("provider", [wallet.address])).role, 0);
  });

  test("for other contracts, or to create one", async () => {
    await nothingChanged(async () => {
      for (const to of [wallet.address, "0x0000000000000000000000000000000000000001", undefined]) {
        const raw = await sign(wallet, contract, "register", [1, ""], { to });
        const params = [{ signed_transactions: [raw] }];
        await refused("tenzro_registerProvider", params, code.INVALID_PARAMS, /^signed_transactions.*contracts/);
      }
    });
  });

  test("more than a few at once", async () => {
    const nonce = await nonceOf(wallet);
    const signed_transactions = [];
    for (let i = 0; i < 9; i += 1) {
      signed_transactions.push(await sign(wallet, contract, "register", [1, ""], { nonce: nonce + i }));
    }
    await nothingChanged(() =>
      refused("tenzro_registerProvider", [{ signed_transactions }], code.INVALID_PARAMS, /at most 8/),
    );
  });

  test("nonces that were used; gas that is not enough", async () => {
    await nothingChanged(async () => {
      const old = await sign(wallet, contract, "register", [1, ""], { nonce: 0 });
      await refused("tenzro_registerProvider", [{ signed_transactions: [old] }], refusals, /nonce too low/);
      const cheap = await sign(wallet, contract, "register", [1, ""], { gas: 21_000n });
      await refused("tenzro_registerProvider", [{ signed_transactions: [cheap] }], refusals, /gas/);
      const huge = await sign(wallet, contract, "register", [1, ""], { gas: 10n ** 9n });
      await refused("tenzro_registerProvider", [{ signed_transactions: [huge] }], refusals, /gas/);
      const value = await sign(wallet, contract, "register", [1, ""], { value: 1n });
      await refused("tenzro_registerProvider", [{ signed_transactions: [value] }], refusals, /insufficient funds/);
    });
  });

  test("one that is mined and fails has its reason and its hash", async () => {
    const wallet = await newWallet();
    const raw = await sign(wallet, contract, "deregister", []);
    const error = await refused(
      "tenzro_deregisterProvider",
      [{ signed_transactions: [raw] }],
      code.TRANSACTION,
      /not registered/,
    );
    assert.equal(error.data.transaction_hash, keccak256(raw));
    const poor = await sign(wallet, tnzo, "transfer", [contract.address, 10n ** 30n]);
    const short = await refused(
      "tenzro_stake",
      [{ signed_transactions: [poor] }],
      code.TRANSACTION,
      /20000 TNZO/,
    );
    assert.equal(short.data.transaction_hash, keccak256(poor));
  });

  test("a transaction that does something else is not called done", async () => {
    const wallet = await newWallet();
    const transfer = () => sign(wallet, tnzo, "transfer", [wallet.address, 1n]);
    const id = keccak256("0x07");
    for (const more of [{ model }, { endpoint_id: id }]) {
      const params = [{ ...more, signed_transactions: [await transfer()] }];
      await refused("tenzro_stopModel", params, [...refusals, code.NOT_FOUND]);
    }
    // These tell where the provider stands, which is enough.
    const told = await call("tenzro_registerProvider", [{ signed_transactions: [await transfer()] }]);
    assert.equal(told.is_registered, false);
    const staked = await call("tenzro_stake", [{ signed_transactions: [await transfer()] }]);
    assert.equal(staked.staked, "0");
  });

  test("a check of what is written stands beside the transaction as without it", async () => {
    const raw = await sign(wallet, contract, "register", [1, ""]);
    await nothingChanged(() =>
      refused(
        "tenzro_registerProvider",
        [{ role: "validator", signed_transactions: [raw] }],
        code.INVALID_PARAMS,
        /^role/,
      ),
    );
  });
});

describe("serving with a signed transaction", () => {
  test("garbage does not make the node call the address", async () => {
    const { hits } = server;
    const wallet = await newWallet();
    const raws = [
      "0x00",
      await sign(wallet, contract, "serveModel", [model, keccak256("0x"), server.url, ""], { to: wallet.address }),
      await sign(wallet, contract, "serveModel", [model, keccak256("0x"), server.url, ""], { chainId: 1 }),
    ];
    for (const raw of raws) {
      const params = [{ model, endpoint: server.url, signed_transactions: [raw] }];
      await refused("tenzro_serveModel", params, refusals);
    }
    assert.equal(server.hits, hits, "asked before the transaction was looked at");
  });

  test("an endpoint that fails the probe is not recorded: the transaction is not sent", async () => {
    const wallet = await newWallet();
    const args = (url) => [model, keccak256("0x"), url, ""];
    const cases = [
      ["http://127.0.0.1:9/v1", code.ENDPOINT],
      [server.url.replace("/v1", "/v2"), code.INVALID_PARAMS],
    ];
    for (const [endpoint, expected] of cases) {
      const raw = await sign(wallet, contract, "serveModel", args(endpoint));
      await refused(
        "tenzro_serveModel",
        [{ model, endpoint, signed_transactions: [raw] }],
        expected,
        /^endpoint/,
      );
    }
    assert.equal(await nonceOf(wallet), 1);
  });

  test("a transaction for another model or another address is told", async () => {
    const wallet = await newWallet();
    const other = `${model}-other`;
    const raw = await sign(wallet, contract, "serveModel", [other, keccak256("0x"), server.url, ""]);
    const params = [{ model, endpoint: server.url, signed_transactions: [raw] }];
    await refused("tenzro_serveModel", params, refusals, /^signed_transactions/);
  });

  test("a multicall sets the price too", async () => {
    const wallet = await newWallet();
    const encode = (functionName, args) => encodeFunctionData({ ...contract, functionName, args });
    const calls = [
      encode("serveModel", [model, keccak256("0x"), server.url, "{}"]),
      encode("setPricing", [model, 0n, 0n]),
    ];
    const raw = await sign(wallet, contract, "multicall", [calls]);
    const told = await call("tenzro_serveModel", [{ model, endpoint: server.url, signed_transactions: [raw] }]);
    assert.deepEqual(told.missing.map((one) => one.what).sort(), ["registration", "stake"]);
    const listed = await call("tenzro_getModelEndpoint", [told.endpoint_id]);
    assert.equal(listed.price_per_output_token, "0");
    assert.equal(info.chain_id, 1337);
  });
});
