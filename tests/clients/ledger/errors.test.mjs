// Wrong input: the message names the field, and nothing changes.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import {
  STAKE,
  TNZO,
  asOperator,
  balanceOf,
  call,
  code,
  info,
  node,
  publicClient,
  refused,
  registry,
  unique,
} from "./support.mjs";

const own = info.wallet;
const operator = { token: node.token };

/** All of the operator's state. */
async function state() {
  return {
    block: await publicClient.getBlockNumber(),
    balance: await balanceOf(own),
    provider: await registry("provider", [own]),
    endpoints: await registry("endpointCount"),
    pricing: (await call("tenzro_getProviderPricing", [])).pricing,
    schedule: await call("tenzro_getProviderSchedule", []),
  };
}

let initial;
before(async () => {
  if ((await balanceOf(own)) < STAKE) await call("tenzro_faucet", []);
  await asOperator("tenzro_registerProvider", [{ role: "model-provider", name: "errors" }]);
  initial = await state();
});
after(async () => {
  assert.deepEqual(await state(), initial, "nothing changed");
});

const wrong = (method, params, message, codes = code.INVALID_PARAMS) =>
  refused(method, params, codes, message, operator);

describe("prices", () => {
  const values = [
    ["0.0001x", /0\.0001x.*decimal number/],
    ["0.0000000000000000001", /more than 18 decimals/],
    ["-0.0001", /negative/],
    ["-1", /negative/],
    ["", /amount/],
    [" ", /amount/],
    ["1e-4", /decimal number/],
    ["0x1", /decimal number/],
    ["1,5", /decimal number/],
    ["+1", /decimal number/],
    ["NaN", /decimal number/],
    ["Infinity", /decimal number/],
    ["1 000", /decimal number/],
    ["٣", /decimal number/],
    ["9".repeat(40), /more than there can be/],
    ["9".repeat(100_000), /more than there can be/],
    [0.0001, /string/],
    [-1, /string/],
    [1e400, undefined],
    [true, /string/],
    [[], /string/],
    [{}, undefined],
  ];

  test("of every field are checked, and it is named", async () => {
    const model = unique("wrong-price");
    for (const [value, message] of values) {
      for (const field of ["per_token", "perToken"]) {
        const error = await wrong("tenzro_setProviderPricing", [{ model, [field]: value }], message);
        if (value !== null) assert.match(error.message, /^(per_token|perToken|pricing)\b/, JSON.stringify(value));
      }
      const error = await wrong("tenzro_setProviderPricing", [{ model, input: "1", output: value }], message);
      assert.match(error.message, /^(output|pricing)\b/, JSON.stringify(value));
      const nested = await wrong("tenzro_setProviderPricing", [{ model, pricing: { per_token: value } }], message);
      assert.match(nested.message, /^pricing\b/, JSON.stringify(value));
    }
  });

  test("in wei are whole numbers", async () => {
    const model = unique("wrong-wei");
    for (const value of ["0.5", "-1", "0x10", "1e18", "", "9".repeat(40), 1.5, -1]) {
      const params = [{ model, price_per_input_token: "1", price_per_output_token: value }];
      const error = await wrong("tenzro_setProviderPricing", params);
      assert.match(error.message, /^(price_per_output_token|pricing)\b/, JSON.stringify(value));
    }
  });

  test("that are incomplete or given twice", async () => {
    const model = unique("unpriced");
    const cases = [
      {},
      { input: "1" },
      { output: "1" },
      { per_token: "1", input: "1", output: "1" },
      { per_token: "1", price_per_input_token: "1", price_per_output_token: "1" },
      { price_per_input_token: "1" },
      { pricing: {} },
    ];
    for (const one of cases) {
      await wrong("tenzro_setProviderPricing", [{ model, ...one }], /^pricing.*per_token/);
    }
    await wrong("tenzro_setProviderPricing", [{ per_token: "1" }], /^model/);
    await wrong("tenzro_setProviderPricing", [], /model|pricing/);
    await wrong("tenzro_setProviderPricing", [model, "1", "2"], /at most/);
  });

  test("a half that nobody understands is not left out silently", async () => {
    const model = unique("half-priced");
    await wrong("tenzro_setProviderPricing", [{ model, per_token: "1", input: "2" }], /^pricing/);
    await wrong("tenzro_setProviderPricing", [{ model, pricing: { per_token: "1" }, per_token: "2" }], /pricing/);
  });

  test("of models that cannot be", async () => {
    for (const model of ["", "Upper", "a b", "x".repeat(97), "x".repeat(100_000), "ü", "a/b", "\u0000"]) {
      const error = await wrong("tenzro_setProviderPricing", [{ model, per_token: "1" }], /^model/);
      assert.ok(error.message.length < 300);
    }
  });
});

describe("schedules", () => {
  test("time zones", async () => {
    for (const timezone of ["Mars/Olympus", "", " ", "UTC+25", "../etc/passwd", "x".repeat(100_000), "GMT 1"]) {
      const error = await wrong("tenzro_setProviderSchedule", [{ timezone, hours: "0-24" }], /^timezone/);
      assert.ok(error.message.length < 300);
      assert.match(error.message, /Europe\/Berlin/, "says what would do");
    }
    for (const timezone of [5, {}, []]) {
      await wrong("tenzro_setProviderSchedule", [{ timezone, hours: "0-24" }], /^timezone/);
    }
  });

  test("hours", async () => {
    const texts = ["0-25", "25-26", "9", "9-9", "-1-5", "9-17-20", "a-b", "", "9-17:60", "24-24", "0-0", "9 to 17"];
    for (const hours of [...texts, "9".repeat(100_000)]) {
      await wrong("tenzro_setProviderSchedule", [{ timezone: "UTC", hours }], /^hours/);
    }
    const objects = [
      { start: 0, end: 25 },
      { start: 24, end: 3 },
      { start: -1, end: 5 },
      { start: 9 },
      { start: "9", end: "17" },
      { start: 9.5, end: 17 },
      { start: 70_000, end: 5 },
      {},
      [9, 17],
      917,
      true,
    ];
    for (const hours of objects) {
      await wrong("tenzro_setProviderSchedule", [{ timezone: "UTC", hours }], /^hours/);
    }
    const pairs = [
      [{ start_hour: 0, end_hour: 25 }, /^(hours|end_hour)/],
      [{ start_hour: -1, end_hour: 5 }, /^(hours|start_hour)/],
      [{ start_hour: 9 }, /^hours/],
      [{ start_hour: 9, end_hour: 17, hours: "9-17" }, /^hours/],
      [{ start_hour: 70_000, end_hour: 5 }, /^(hours|start_hour)/],
      [{}, /^hours/],
    ];
    for (const [fields, message] of pairs) {
      await wrong("tenzro_setProviderSchedule", [{ timezone: "UTC", ...fields }], message);
    }
  });

  test("days", async () => {
    const days = ["", "funday", "mo", "mon-", "mon,,tue", 5, {}, ["mon", 5], [], [true], Array(8).fill(true)];
    days.push(Array(7).fill(false), Array(7).fill(1), "x".repeat(100_000));
    for (const value of days) {
      await wrong("tenzro_setProviderSchedule", [{ timezone: "UTC", hours: "0-24", days: value }], /^days/);
    }
  });

  test("enabled is true or false", async () => {
    for (const enabled of ["no", 0, {}]) {
      await wrong("tenzro_setProviderSchedule", [{ enabled, timezone: "UTC", hours: "0-24" }], /^enabled/);
    }
  });
});

describe("registration and stake", () => {
  test("roles", async () => {
    for (const role of ["validator", "", "tee-provider", "x".repeat(100_000), "model provider"]) {
      for (const [method, more] of [
        ["tenzro_registerProvider", {}],
        ["tenzro_stake", { amount: "1" }],
      ]) {
        const error = await wrong(method, [{ role, ...more }], /^role.*model-provider/);
        assert.ok(error.message.length < 200);
      }
    }
    for (const role of [5, {}, []]) await wrong("tenzro_registerProvider", [{ role }], /^role/);
    await wrong("tenzro_unstake", [{ amount: "1", role: "validator" }], /^role/);
  });

  test("names that are too long, in bytes", async () => {
    for (const name of ["x".repeat(65), "ü".repeat(33), "x".repeat(100_000)]) {
      const codes = [code.INVALID_PARAMS, code.TRANSACTION];
      const error = await wrong("tenzro_registerProvider", [{ name }], /^name.*64/, codes);
      assert.doesNotMatch(error.message, /x{60}/);
    }
    await wrong("tenzro_registerProvider", [{ name: 5 }], /^name/);
  });

  test("amounts", async () => {
    for (const amount of ["", "x", "1.5", "-1", "0x10", "1e21", "9".repeat(40), 1.5, -1, true, {}, []]) {
      await wrong("tenzro_stake", [{ amount }], /^amount/);
      await wrong("tenzro_unstake", [{ amount }], /^amount/);
    }
    await wrong("tenzro_stake", [{ amount: "0" }], /^amount.*0/);
    await wrong("tenzro_stake", [{ amount: 0 }], /^amount.*0/);
    await wrong("tenzro_stake", [{}], /^amount/);
    await wrong("tenzro_stake", [], /^amount/);
    await wrong("tenzro_stake", [{ amount: "1", amount_tnzo: "1" }], /amount_tnzo/);
    for (const amount_tnzo of ["0.0000000000000000001", "-5", "1000x", "", "0"]) {
      await wrong("tenzro_stake", [{ amount_tnzo }], /^amount/);
    }
  });

  test("more than there is: says how much is there, and how much is needed", async () => {
    const balance = await balanceOf(own);
    const asked = String(balance + TNZO);
    const tnzo = (wei) => {
      const whole = wei / TNZO;
      const part = (wei % TNZO).toString().padStart(18, "0").replace(/0+$/, "");
      return part === "" ? String(whole) : `${whole}.${part}`;
    };
    const error = await wrong("tenzro_stake", [{ amount: asked }], undefined, code.TRANSACTION);
    assert.ok(error.message.includes(`${tnzo(balance)} TNZO`), error.message);
    assert.ok(error.message.includes(tnzo(balance + TNZO)), error.message);
    assert.match(error.data?.hint ?? error.message, /faucet|send|TNZO/i);
    const { staked, unbonding } = await registry("provider", [own]);
    const over = String(staked - unbonding + 1n);
    await wrong("tenzro_unstake", [{ amount: over }], /staked and not unbonding/, code.TRANSACTION);
    await wrong("tenzro_stake", [{ amount: String(2n ** 128n - 1n) }], /TNZO/, code.TRANSACTION);
  });
});

describe("parameters", () => {
  test("too many, or of another kind", async () => {
    const cases = [
      ["tenzro_registerProvider", ["model-provider", "x", "y"], /at most: role, name/],
      ["tenzro_stake", ["1", "model-provider", "x"], /at most: amount, role/],
      ["tenzro_setProviderSchedule", ["UTC", "0-24", "mon", "x"], /at most/],
      ["tenzro_stopModel", ["a", "b"], /at most: model/],
      ["tenzro_registerProvider", [{ name: "a" }, { name: "b" }], /role|name/],
      ["tenzro_stake", [[["1"]]], /^amount/],
    ];
    for (const [method, params, message] of cases) await wrong(method, params, message);
  });

  test("a field under two names", async () => {
    const model = unique("doubled");
    const params = [{ model, model_id: model, per_token: "1" }];
    const answer = await refused("tenzro_setProviderPricing", params, code.INVALID_PARAMS, undefined, operator);
    assert.match(answer.message, /model/);
  });

  test("a misspelt field is told, not ignored", async () => {
    const model = unique("misspelt");
    await wrong("tenzro_setProviderPricing", [{ model, per_tokne: "1" }], /per_token/);
    await wrong("tenzro_stake", [{ amuont: "1" }], /amount/);
  });
});
