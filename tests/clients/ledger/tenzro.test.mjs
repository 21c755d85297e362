// tenzro_* methods in every form of parameters that product.md accepts, and the shapes of their results.
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { getAddress, isAddress } from "viem";

import {
  DRIP,
  STAKE,
  TNZO,
  asOperator,
  balanceOf,
  call,
  code,
  contracts,
  info,
  mined,
  modelServer,
  newWallet,
  node,
  permit,
  post,
  publicClient,
  refused,
  registry,
  unique,
} from "./support.mjs";

const own = info.wallet;
const WEI = /^(0|[1-9][0-9]*)$/;
const HASH = /^0x[0-9a-f]{64}$/;

const isWei = (value, name) => assert.match(value, WEI, name);
const orNull = (check) => (value, name) => value === null || check(value, name);
const isNumber = (value, name) => assert.equal(typeof value, "number", name);
const isString = (value, name) => assert.equal(typeof value, "string", name);
const isBoolean = (value, name) => assert.equal(typeof value, "boolean", name);
const isList = (value, name) => assert.ok(Array.isArray(value), name);
const isHash = (value, name) => assert.match(value, HASH, name);
const isOwn = (value, name) => assert.equal(value, getAddress(value), `${name} has its checksum`);

/** Every field is there and is what it should be. */
function hasShape(value, shape) {
  for (const [name, check] of Object.entries(shape)) {
    assert.ok(name in value, `${name} is missing in ${JSON.stringify(value)}`);
    check(value[name], name);
  }
  for (const name of Object.keys(value)) assert.match(name, /^[a-z0-9_]+$/, "snake_case");
}

const endpointShape = {
  endpoint_id: isHash,
  model_id: isString,
  provider: orNull(isOwn),
  api_endpoint: isString,
  model_hash: orNull((value) => assert.match(value, /^[0-9a-f]{64}$/)),
  quantization: orNull(isString),
  context_length: orNull(isNumber),
  price_per_input_token: orNull(isWei),
  price_per_output_token: orNull(isWei),
  status: (value) =>
    assert.match(value, /^(online|degraded|offline|unknown|scheduled_off|inactive)$/),
  latency_ms: orNull(isNumber),
  error_rate: orNull(isNumber),
  uptime_percent: orNull(isNumber),
  location: (value) => assert.match(value, /^(local|network)$/),
  missing: isList,
};

const providerShape = {
  provider: isOwn,
  name: isString,
  is_registered: isBoolean,
  staked: isWei,
  unbonding: isWei,
  minimum_stake: isWei,
  is_eligible: isBoolean,
  missing: isList,
  is_open: isBoolean,
  served_models: isList,
};

const writeShape = { ...providerShape, transaction_hash: isHash, status: isString };

/** What a write answered: its shape, and a transaction of the node's wallet that succeeded. */
async function wrote(result) {
  hasShape(result, writeShape);
  assert.equal(result.provider, own);
  const receipt = await mined(result.transaction_hash);
  assert.equal(getAddress(receipt.from), own);
  return result;
}

before(async () => {
  if ((await balanceOf(own)) < STAKE) await call("tenzro_faucet", []);
});

describe("reads", () => {
  test("networkInfo has what an SDK needs to sign", async () => {
    for (const params of [[], [{}], {}, undefined]) {
      const told = await call("tenzro_networkInfo", params);
      hasShape(told, {
        chain_id: isNumber,
        chain: isString,
        is_development: isBoolean,
        minimum_stake: isWei,
        unbonding_seconds: isNumber,
        price_delay_seconds: isNumber,
        block: isNumber,
        ledger_lag_seconds: isNumber,
        wallet: isOwn,
        version: isString,
      });
      for (const name of ["tnzo", "faucet", "provider_registry", "payment_channels"]) {
        assert.ok(isAddress(told.contracts[name], { strict: true }), name);
      }
      assert.equal(told.chain, "embedded");
      assert.equal(told.is_development, true);
      assert.equal(told.minimum_stake, String(STAKE));
      assert.equal(told.unbonding_seconds, 7 * 24 * 3600);
      assert.equal(told.price_delay_seconds, 60);
      assert.equal(BigInt(told.block), await publicClient.getBlockNumber());
    }
  });

  test("getBalance: positional, named, in a list, by alias, the node's own", async () => {
    const wallet = await newWallet();
    const { address } = wallet;
    const forms = [
      [address],
      [address.toLowerCase()],
      [{ address }],
      { address },
      [{ account: address }],
      [{ wallet: address }],
      [{ provider: address }],
    ];
    for (const params of forms) {
      const told = await call("tenzro_getBalance", params);
      assert.equal(told.address.toLowerCase(), address.toLowerCase(), JSON.stringify(params));
      assert.equal(told.address, address, "with its checksum, as everywhere else");
      assert.equal(told.balance, String(DRIP));
      assert.equal(told.balance_tnzo, "20000");
    }
    for (const params of [[], {}, [{}], undefined, [null]]) {
      const told = await call("tenzro_getBalance", params);
      assert.equal(getAddress(told.address), own);
      assert.equal(told.balance, String(await balanceOf(own)));
    }
  });

  test("lists take a model in every form", async () => {
    const model = unique("forms-model");
    const server = await modelServer([{ id: model }]);
    try {
      await asOperator("tenzro_serveModel", [{ model, endpoint: server.url }]);
      const forms = [
        [model],
        [{ model }],
        { model },
        [{ model_id: model }],
        { model_id: model },
        [{ modelId: model }],
        [model.toUpperCase().replaceAll("-", "_")],
      ];
      for (const params of forms) {
        const listed = await call("tenzro_listModelEndpoints", params);
        assert.equal(listed.length, 1, JSON.stringify(params));
        hasShape(listed[0], endpointShape);
        // Its own position is the endpoint's id.
        const isPositional = typeof params[0] === "string";
        const one = await call("tenzro_getModelEndpoint", isPositional ? [{ model: params[0] }] : params);
        assert.equal(one.endpoint_id, listed[0].endpoint_id);
      }
      const id = (await call("tenzro_listModelEndpoints", [model]))[0].endpoint_id;
      const byId = [[id], [{ endpoint_id: id }], { endpoint_id: id }, [{ endpointId: id }], [{ instance_id: id }]];
      for (const params of byId) {
        assert.equal((await call("tenzro_getModelEndpoint", params)).model_id, model);
      }
      for (const params of [[], {}, [{}], undefined]) {
        const all = await call("tenzro_listModelEndpoints", params);
        assert.ok(all.some((one) => one.endpoint_id === id));
      }
      const models = await call("tenzro_listModels", []);
      const told = models.find((one) => one.model_id === model);
      hasShape(told, {
        model_id: isString,
        endpoints: isNumber,
        online: isNumber,
        cheapest_input_token: orNull(isWei),
        cheapest_output_token: orNull(isWei),
        dearest_output_token: orNull(isWei),
      });
      assert.equal(told.online, 1);
      await asOperator("tenzro_stopModel", [model]);
      assert.deepEqual(await call("tenzro_listModelEndpoints", [model]), []);
    } finally {
      await server.close();
    }
  });

  test("what is not there: an empty list, or an error that names what was asked for", async () => {
    assert.deepEqual(await call("tenzro_listModelEndpoints", ["no-such-model"]), []);
    await refused("tenzro_getModelEndpoint", [{ model: "no-such-model" }], code.NOT_FOUND, /no-such-model/);
    const id = `0x${"cd".repeat(32)}`;
    await refused("tenzro_getModelEndpoint", [{ endpoint_id: id }], code.NOT_FOUND, /0xcdcd/);
    await refused("tenzro_getModelEndpoint", [{ endpoint_id: "x" }], [code.NOT_FOUND, code.INVALID_PARAMS]);
    await refused("tenzro_getModelEndpoint", [], code.INVALID_PARAMS, /endpoint_id or model/);
    await refused("tenzro_getModelEndpoint", [{ model: "x".repeat(100_000) }], code.NOT_FOUND);
  });

  test("wrong types name the field", async () => {
    const cases = [
      ["tenzro_getBalance", ["0x12"], /^address/],
      ["tenzro_getBalance", ["vitalik.eth"], /^address/],
      ["tenzro_getBalance", [{ address: 5 }], /^address/],
      ["tenzro_getBalance", [{ address: `${own}00` }], /^address/],
      ["tenzro_listModelEndpoints", [5], /^model/],
      ["tenzro_listModelEndpoints", [{ model_id: {} }], /model/],
      ["tenzro_getModelEndpoint", [{ endpoint_id: 5 }], /^endpoint_id/],
      ["tenzro_getProviderPricing", [{ address: [] }], /^address/],
      ["tenzro_getProviderSchedule", [true], /^address/],
      ["tenzro_getBalance", [own, "latest", 1], /at most/],
    ];
    for (const [method, params, message] of cases) {
      await refused(method, params, code.INVALID_PARAMS, message);
    }
  });

  test("an address with a wrong checksum is refused", async () => {
    const wallet = await newWallet({ funded: false });
    const { address } = wallet;
    const at = [...address].findIndex((letter, i) => i > 1 && /[a-zA-Z]/.test(letter));
    const letter = address[at];
    const flipped = letter === letter.toLowerCase() ? letter.toUpperCase() : letter.toLowerCase();
    const wrong = address.slice(0, at) + flipped + address.slice(at + 1);
    await refused("tenzro_faucet", [wrong], code.INVALID_PARAMS, /address/);
  });

  test("getProviderPricing and getProviderSchedule of somebody who said nothing", async () => {
    const { address } = await newWallet({ funded: false });
    for (const params of [[address], [{ address }], { address }, [{ provider: address }]]) {
      const told = await call("tenzro_getProviderPricing", params);
      assert.equal(getAddress(told.provider), address);
      assert.deepEqual(told.pricing, []);
      assert.deepEqual(await call("tenzro_getProviderSchedule", params), { enabled: false, active_now: true });
    }
    await refused("tenzro_getProviderPricing", [address, "m"], code.NOT_FOUND, /'m'/);
  });
});

describe("faucet", () => {
  test("is open to everybody, in every form, once a day", async () => {
    const forms = [
      (address) => [address],
      (address) => [{ address }],
      (address) => ({ address }),
      (address) => [{ account: address }],
      (address) => [{ wallet: address }],
    ];
    for (const form of forms) {
      const { address } = await newWallet({ funded: false });
      const told = await call("tenzro_faucet", form(address));
      hasShape(told, { address: isString, transaction_hash: isHash });
      await mined(told.transaction_hash);
      assert.equal(await balanceOf(address), DRIP);
      const error = await refused("tenzro_faucet", form(address), code.TRANSACTION, /once a day.*Unix time \d+/);
      assert.equal(error.data.transaction_hash, null, "nothing was mined");
      assert.equal(await balanceOf(address), DRIP);
    }
  });

  test("many at once", async () => {
    const wallets = await Promise.all(Array.from({ length: 20 }, () => newWallet({ funded: false })));
    const told = await Promise.all(wallets.map(({ address }) => call("tenzro_faucet", [address])));
    assert.equal(new Set(told.map((one) => one.transaction_hash)).size, 20);
    for (const { address } of wallets) assert.equal(await balanceOf(address), DRIP);
  });
});

describe("the operator's writes", () => {
  test("register in every form; deregister", async () => {
    const forms = [
      [{ role: "model-provider", name: "one" }],
      { role: "model_provider", name: "two" },
      ["model-provider", "three"],
      [{ provider_type: "llm", name: "four" }],
      [{ providerType: "MODEL_PROVIDER", name: "five" }],
      [{ role: "provider" }],
      [],
      undefined,
      [{}],
    ];
    const names = ["one", "two", "three", "four", "five", "", "", "", ""];
    for (const [i, params] of forms.entries()) {
      const told = await wrote(await asOperator("tenzro_registerProvider", params));
      assert.equal(told.is_registered, true);
      assert.equal(told.name, names[i]);
      assert.equal((await registry("provider", [own])).name, names[i]);
    }
    const told = await wrote(await asOperator("tenzro_deregisterProvider", []));
    assert.equal(told.is_registered, false);
    assert.ok(told.missing.some((one) => one.what === "registration"));
    await refused("tenzro_deregisterProvider", [], code.TRANSACTION, /not registered/, node);
    await asOperator("tenzro_registerProvider", [{ role: "model-provider", name: "operator" }]);
  });

  test("fields that are null count as left out", async () => {
    const told = await asOperator("tenzro_registerProvider", [
      { role: null, name: null, signed_transactions: null },
    ]);
    assert.equal(told.name, "");
  });

  test("stake in every form, to the wei", async () => {
    const forms = [
      [[{ amount: "5" }], 5n],
      [{ amount: "6" }, 6n],
      [["7"], 7n],
      [["8", "model-provider"], 8n],
      [[9], 9n],
      [[{ amount: 10, role: "model_provider" }], 10n],
      [[{ amount: "1000000000000000001", provider_type: "provider" }], TNZO + 1n],
      [[{ amount_tnzo: "0.000000000000000001" }], 1n],
      [[{ amountTnzo: "2" }], 2n * TNZO],
      [[{ amount: 2 ** 53 - 1 }], 2n ** 53n - 1n],
    ];
    let staked = (await registry("provider", [own])).staked;
    for (const [params, amount] of forms) {
      const told = await wrote(await asOperator("tenzro_stake", params));
      staked += amount;
      assert.equal(told.staked, String(staked), JSON.stringify(params));
      assert.equal((await registry("provider", [own])).staked, staked);
    }
  });

  test("an integer of any length is exact, or refused with advice; never rounded", async () => {
    const { staked } = await registry("provider", [own]);
    // As Python's json module writes 1000 * 10**18 + 1.
    const body = `{"jsonrpc":"2.0","id":1,"method":"tenzro_stake","params":[{"amount":1000000000000000000001}]}`;
    const { json } = await post(body, { token: node.token });
    const now = (await registry("provider", [own])).staked;
    if (json.error) {
      assert.equal(json.error.code, code.INVALID_PARAMS);
      assert.match(json.error.message, /^amount: .*string/);
      assert.equal(now, staked);
    } else {
      assert.equal(now, staked + 1000n * TNZO + 1n);
    }
  });

  test("unstake in every form", async () => {
    const forms = [[[{ amount: "1" }], 1n], [["2"], 2n], [{ amount: 3 }, 3n], [[{ amount_tnzo: "0.5" }], TNZO / 2n]];
    let { unbonding } = await registry("provider", [own]);
    for (const [params, amount] of forms) {
      const told = await wrote(await asOperator("tenzro_unstake", params));
      unbonding += amount;
      assert.equal(told.unbonding, String(unbonding));
      assert.ok(told.unbonding_until > Date.now() / 1000 + 6 * 24 * 3600);
    }
  });

  test("pricing in every form, set and read back", async () => {
    const wei = "100000000000000";
    const forms = [
      (model) => [{ model, per_token: "0.0001" }],
      (model) => ({ model, per_token: "0.0001" }),
      (model) => [model, "0.0001"],
      (model) => [{ model_id: model, perToken: "0.0001" }],
      (model) => [{ modelId: model, input: "0.0001", output: "0.0001" }],
      (model) => [{ model, input_per_token: "0.0001", output_per_token: "0.0001" }],
      (model) => [{ model, price_per_input_token: wei, price_per_output_token: wei }],
      (model) => [{ model, pricing: { per_token: "0.0001" } }],
      (model) => [{ model, pricing: { input_price_per_token_wei: wei, output_price_per_token_wei: wei } }],
      (model) => [{ model, pricing: { price_per_input_token: 1e14, price_per_output_token: 1e14 } }],
    ];
    const set = [];
    for (const form of forms) {
      const model = unique("priced");
      set.push(model);
      await wrote(await asOperator("tenzro_setProviderPricing", form(model)));
      const read = [[own, model], [{ address: own, model }], { model }, [{ model_id: model }], [null, model]];
      for (const params of read) {
        const told = await call("tenzro_getProviderPricing", params);
        hasShape(told, {
          model_id: isString,
          price_per_input_token: isWei,
          price_per_output_token: isWei,
          price_version: isNumber,
          next_price: orNull((value) => isNumber(value.effective_at)),
        });
        assert.equal(told.price_per_input_token, wei);
        assert.equal(told.price_version, 1);
      }
      const onChain = await registry("pricing", [own, model]);
      assert.equal(onChain.outputPrice, 10n ** 14n);
    }
    const all = await call("tenzro_getProviderPricing", []);
    assert.equal(getAddress(all.provider), own);
    const told = all.pricing.map((one) => one.model_id);
    assert.deepEqual(set.filter((model) => !told.includes(model)), []);
  });

  test("a rise of the price is announced, a fall is not", async () => {
    const model = unique("rising");
    const set = (per_token) => asOperator("tenzro_setProviderPricing", [{ model, per_token }]);
    await set("0");
    await set("0.5");
    const told = await call("tenzro_getProviderPricing", [own, model]);
    assert.equal(told.price_per_output_token, "0");
    assert.equal(told.next_price.price_per_output_token, String(TNZO / 2n));
    const wait = told.next_price.effective_at - Date.now() / 1000;
    assert.ok(wait > 50 && wait <= 61, `${wait} s`);
    await set("0");
    const after = await call("tenzro_getProviderPricing", [own, model]);
    assert.equal(after.next_price, null);
    assert.equal(after.price_version, 3);
  });

  test("schedule in every form, set, read back and cleared", async () => {
    const always = [1440, 0, 127, "UTC"];
    const forms = [
      [[{ timezone: "UTC", hours: "0-24" }], always],
      [{ timezone: "UTC", hours: "0-24" }, always],
      [["UTC", "0-24"], always],
      [[{ hours: "0-24" }], always],
      [[{ timezone: "utc", hours: { start: 0, end: 24 } }], always],
      [[{ enabled: true, start_hour: 0, end_hour: 24 }], always],
      [[{ startHour: 0, endHour: 24, timezone: "UTC" }], always],
      [[{ timezone: "Europe/Berlin", hours: "22:30-6", days: "mon-fri" }], [360, 1350, 31, "Europe/Berlin"]],
      [[{ timezone: "Europe/Berlin", hours: "9-17", days: ["sat", "sun"] }], [1020, 540, 96, "Europe/Berlin"]],
      [
        [{ timezone: "Asia/Tokyo", hours: "9-17", days_of_week: [true, false, false, false, false, false, true] }],
        [1020, 540, 65, "Asia/Tokyo"],
      ],
      [
        [{ timezone: "Asia/Tokyo", hours: "9-17", daysOfWeek: [true, true, true, true, true, true, true] }],
        [1020, 540, 127, "Asia/Tokyo"],
      ],
    ];
    for (const [params, [end, start, mask, zone]] of forms) {
      const result = await wrote(await asOperator("tenzro_setProviderSchedule", params));
      assert.equal(result.schedule.timezone, zone, JSON.stringify(params));
      const { schedule } = await registry("provider", [own]);
      assert.deepEqual(
        [schedule.endMinute, schedule.startMinute, schedule.daysMask, schedule.timezone],
        [end, start, mask, zone],
      );
      const told = await call("tenzro_getProviderSchedule", []);
      hasShape(told, {
        enabled: isBoolean,
        timezone: isString,
        hours: isString,
        start_hour: isNumber,
        end_hour: isNumber,
        days: isList,
        days_of_week: isList,
        active_now: isBoolean,
      });
      assert.equal(told.days_of_week.filter(Boolean).length, told.days.length);
      // What is read can be written again.
      const { timezone, hours, days } = told;
      await asOperator("tenzro_setProviderSchedule", [{ timezone, hours, days }]);
      assert.deepEqual((await registry("provider", [own])).schedule, schedule);
    }
    await wrote(await asOperator("tenzro_setProviderSchedule", [{ enabled: false }]));
    assert.equal((await registry("provider", [own])).schedule.isSet, false);
    assert.deepEqual(await call("tenzro_getProviderSchedule", [own]), { enabled: false, active_now: true });
  });

  test("listProviders has the operator as it is", async () => {
    for (const params of [[], {}, undefined]) {
      const providers = await call("tenzro_listProviders", params);
      const told = providers.find((one) => one.provider === own);
      hasShape(told, providerShape);
      const onChain = await registry("provider", [own]);
      assert.equal(told.staked, String(onChain.staked));
      assert.equal(told.unbonding, String(onChain.unbonding));
      assert.equal(told.is_registered, onChain.role === 1);
    }
  });

  test("writes at the same time all succeed", async () => {
    const { staked } = await registry("provider", [own]);
    const told = await Promise.all(Array.from({ length: 20 }, () => asOperator("tenzro_stake", ["1"])));
    assert.equal(new Set(told.map((one) => one.transaction_hash)).size, 20);
    assert.equal((await registry("provider", [own])).staked, staked + 20n);
  });
});

describe("somebody's own transactions beside the node", () => {
  test("what was mined over eth_ is seen by the next tenzro_ call", async () => {
    const wallet = await newWallet();
    const write = (functionName, args) =>
      wallet.writeContract({ ...contracts.registry, functionName, args });
    const now = async () => {
      const providers = await call("tenzro_listProviders", []);
      return providers.find((one) => one.provider === wallet.address);
    };
    assert.equal(await now(), undefined);
    await mined(await write("register", [1, "beside"]));
    assert.equal((await now()).name, "beside");
    const { deadline, v, r, s } = await permit(wallet, contracts.registry.address, STAKE);
    await mined(await write("stakeWithPermit", [STAKE, deadline, v, r, s]));
    assert.equal((await now()).is_eligible, true);
    await mined(await write("requestUnstake", [1n]));
    const told = await now();
    assert.equal(told.is_eligible, false);
    assert.deepEqual(told.missing, [{ what: "stake", amount: "1" }]);
    await mined(await write("cancelUnstake", []));
    await mined(await write("deregister", []));
    assert.deepEqual((await now()).missing, [{ what: "registration" }]);
  });
});
