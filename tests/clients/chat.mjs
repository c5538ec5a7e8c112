// The official Node client against a running server: BASE_URL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const request = { model, messages, temperature: 0, max_tokens: 24 };

const stream = await client.chat.completions.create({ ...request, stream: true });
let streamed = "";
let reason = null;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  reason = chunk.choices[0]?.finish_reason ?? reason;
}
const whole = await client.chat.completions.create(request);
assert.equal(streamed, whole.choices[0].message.content);
assert.equal(reason, "length");
assert.equal(whole.usage.completion_tokens, 24);

// A client that walks away in the middle of a stream does not disturb the next one.
const abandoned = await client.chat.completions.create({
  ...request,
  max_tokens: 400,
  stream: true,
});
for await (const chunk of abandoned) {
  if (chunk.choices[0]?.delta?.content) break;
}
const after = await client.chat.completions.create(request);
assert.equal(after.choices[0].message.content, streamed);

await assert.rejects(
  client.chat.completions.create({ ...request, messages: [] }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "messages",
);
console.log("node client: ok");
