// The official Node client against a model server (address in OPENAI_BASE_URL).
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = process.env.TEST_MODEL;
const ask = {
  model,
  temperature: 0,
  max_tokens: 20,
  messages: [{ role: "user", content: "What is the capital of France? One word." }],
};

test("chat, whole and streamed, agree", async () => {
  const whole = await client.chat.completions.create(ask);
  assert.match(whole.choices[0].message.content, /Paris/);
  const stream = await client.chat.completions.create({
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
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("the stream helper collects an answer", async () => {
  const answer = await client.chat.completions.stream(ask).finalChatCompletion();
  assert.equal(answer.choices[0].finish_reason, "stop");
});

test("models, completions and embeddings", async () => {
  const models = await client.models.list();
  assert.equal(models.data[0].id, model);
  const completion = await client.completions.create({
    model,
    prompt: "The capital of France is",
    temperature: 0,
    max_tokens: 5,
  });
  assert.match(completion.choices[0].text, /Paris/);
  const embedding = await client.embeddings.create({ model, input: "a cat" });
  assert.equal(embedding.data[0].embedding.length, 576);
});

test("errors have the class and the field", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, model: "unknown" }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...ask, top_p: 7 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    return error.param === "top_p";
  });
});

test("leaving a stream early leaves the server well", async () => {
  const stream = await client.chat.completions.create({ ...ask, max_tokens: 900, stream: true });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content) break;
  }
  assert.ok((await client.chat.completions.create({ ...ask, max_tokens: 1 })).id);
});
