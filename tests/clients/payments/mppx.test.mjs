// mppx, MPP's TypeScript client, reads what a provider says. Its own EVM method only knows single charges.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Challenge, Credential, Receipt } from "mppx";
import { getAddress } from "viem";

const { PROVIDER_URL, TEST_MODEL: model } = process.env;
const url = `${PROVIDER_URL}/chat/completions`;
const ask = { model, messages: [{ role: "user", content: "hi" }], max_tokens: 1 };
const post = (headers = {}) =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(ask),
  });

test("mppx reads the challenge", async () => {
  const response = await post();
  assert.equal(response.status, 402);
  const challenge = Challenge.fromResponse(response);
  assert.equal(challenge.method, "evm");
  assert.equal(challenge.intent, "session");
  assert.equal(challenge.realm, "127.0.0.1");
  assert.ok(Date.parse(challenge.expires) > Date.now());
  const { request } = challenge;
  assert.equal(request.amount, String(3n * 10n ** 14n));
  assert.equal(request.unitType, "llm_token");
  assert.equal(request.methodDetails.chainId, 1337);
  assert.equal(request.methodDetails.feePayer, true);
  for (const address of [request.currency, request.recipient, request.methodDetails.escrowContract]) {
    assert.equal(getAddress(address).toLowerCase(), address.toLowerCase());
  }
});

test("a credential that mppx writes is read: only what it pays with is wrong", async () => {
  const challenge = Challenge.fromResponse(await post());
  const payload = {
    action: "voucher",
    channelId: `0x${"11".repeat(32)}`,
    cumulativeAmount: "1",
    signature: `0x${"22".repeat(64)}1b`,
  };
  const refused = await post({ authorization: Credential.serialize({ challenge, payload }) });
  assert.equal(refused.status, 410);
  const problem = await refused.json();
  assert.equal(problem.type, "https://paymentauth.org/problems/session/channel-not-found");
  assert.equal(problem.channelId, payload.channelId);
});
