// The official Node client: at a node that pays for it, and at a provider that nobody pays.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { NODE_URL, PROVIDER_URL, TEST_MODEL: model } = process.env;
const [input, output] = [10n ** 14n, 3n * 10n ** 14n];
const ask = {
  model,
  messages: [{ role: "user", content: "Write about the sea." }],
  temperature: 0,
  max_tokens: 70,
  ignore_eos: true,
};
const node = new OpenAI({ baseURL: `${NODE_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const cost = (usage) => String(BigInt(usage.prompt_tokens) * input + BigInt(usage.completion_tokens) * output);

test("models of the network", async () => {
  const models = await node.models.list();
  assert.deepEqual(models.data.map((found) => found.id), [model]);
});

test("answers are paid for and say what they cost", async () => {
  const whole = await node.chat.completions.create(ask);
  assert.equal(whole.usage.completion_tokens, 70);
  assert.equal(whole.usage.cost, cost(whole.usage));
  const stream = await node.chat.completions.create({
    ...ask,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.cost, cost(usage));
});

test("a provider that nobody pays is an error with a reason and no storm", async () => {
  let requests = 0;
  const counted = (...args) => {
    requests += 1;
    return fetch(...args);
  };
  // As the client comes: it tries again what may get better.
  const provider = new OpenAI({ baseURL: PROVIDER_URL, apiKey: "unused", fetch: counted });
  for (const stream of [false, true]) {
    requests = 0;
    await assert.rejects(provider.chat.completions.create({ ...ask, stream }), (error) => {
      assert.ok(error instanceof OpenAI.APIError);
      assert.equal(error.status, 402);
      assert.equal(error.code, "payment_required");
      assert.equal(error.type, "payment_required_error");
      assert.equal(error.message, "402 this model is paid for per token: open a payment channel");
      return true;
    });
    assert.equal(requests, 1);
  }
});
