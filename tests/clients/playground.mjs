// The playground in headless Chromium, of a server with a second model `small`: BASE_URL CHROMIUM [FOLDER_FOR_SCREENSHOTS].
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const [base, executablePath, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 800 }, colorScheme: "light" });
const wrong = [];
page.on("pageerror", error => wrong.push(String(error)));
page.on("console", message => message.type() === "error" && wrong.push(message.text()));
page.on("request", request => request.url().startsWith(base) || request.url().startsWith("data:") || wrong.push(request.url()));
const shot = name => folder && page.screenshot({ path: `${folder}/${name}.png` });
const done = () => page.waitForFunction(() => document.getElementById("send").textContent === "Send", null, { timeout: 120_000 });

await page.goto(base);
await page.locator("#choice option").first().waitFor({ state: "attached" });
const names = await page.locator("#choice option").allTextContents();
assert.ok(names.length === 2 && names[0].includes("SmolLM2") && names[1] === "small", names.join());
assert.equal(await page.locator("#choice").inputValue(), names[0], "the main model answers");
assert.equal(await page.getAttribute("html", "data-theme"), "light");
assert.equal(await page.evaluate(() => document.activeElement.id), "prompt", "ready to write");

// From the keyboard alone: side by side, written, sent.
await page.keyboard.press("Alt+s");
await page.keyboard.press("Alt+s");
assert.ok(await page.isChecked("[value=both]"));
await page.fill("#max_tokens", "96");
await page.fill("#temperature", "0");
await page.focus("#prompt");
await shot("playground-empty");
await page.keyboard.type("Write a Python function that reverses a list.");
await page.keyboard.press("Enter");
await done();
const texts = await page.locator(".answer .text").allTextContents();
assert.equal(texts.length, 2);
assert.equal(texts[0], texts[1], "the same text with and without speculation");
const tokens = async (answer, kind) => page.locator(`.answer:nth-child(${answer}) .text .${kind}`).count();
// How much is drafted depends on the load; the colours must agree with the server's own count.
const foot = await page.textContent(".answer:nth-child(1) .foot");
const [, written, accepted] = foot.match(/^(\d+) tokens in \d+ passes(?:, (\d+) of \d+ draft tokens accepted)?$/);
const own = await tokens(1, "recovered") + await tokens(1, "bonus");
assert.equal(await tokens(1, "draft_model") + await tokens(1, "ngram"), Number(accepted ?? 0));
assert.equal(own, written - (accepted ?? 0));
assert.equal(await tokens(2, "target"), await page.locator(".answer:nth-child(2) .text span").count());
assert.match(await page.textContent(".verdict"), /× the speed with speculation, and the texts are identical/);
await shot("playground-side-by-side");

// The conversation goes on, in the dark, with speculation.
await page.click("#theme");
assert.equal(await page.getAttribute("html", "data-theme"), "dark");
await page.check("[value=on]");
await page.fill("#prompt", "Now explain it in two sentences.");
await page.click("#send");
await done();
assert.equal(await page.locator(".user").count(), 2);
assert.match(await page.textContent("#speed"), /^\d+$/);
assert.match(await page.textContent("#acceptance"), /^(\d+ %|–)$/);
await shot("playground-dark");

// Another model goes on with it.
await page.selectOption("#choice", "small");
await page.fill("#max_tokens", "4");
await page.fill("#prompt", "Hi");
const [asked] = await Promise.all([page.waitForRequest(/chat\/completions/), page.click("#send")]);
assert.equal(asked.postDataJSON().model, "small");
await done();
assert.equal(await page.locator(".answers:last-child .error").count(), 0);
assert.match(await page.textContent(".answers:last-child h3"), /^small, with speculation/);
await shot("playground-models");
// The first one goes on with nothing of that.
await page.selectOption("#choice", names[0]);
await page.keyboard.press("Alt+n");

// Escape stops an answer and keeps what was written; what is wrong is said in words.
await page.fill("#max_tokens", "2000");
await page.fill("#prompt", "Count from 1 to 1000.");
await page.keyboard.press("Enter");
await page.locator(".answers:last-child .text span").nth(8).waitFor();
await page.keyboard.press("Escape");
await done();
assert.equal(await page.locator(".answers:last-child .foot").textContent(), "stopped");
await page.keyboard.press("Alt+n");
assert.equal(await page.locator(".answer").count(), 0);
assert.deepEqual(wrong, []);
await page.fill("#temperature", "-1");
await page.fill("#prompt", "Hello");
await page.keyboard.press("Enter");
await page.locator(".error").waitFor();
assert.match(await page.textContent(".error"), /temperature/);
// A narrow screen has everything below one another and nothing beside the edge.
await page.setViewportSize({ width: 390, height: 800 });
assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "no sideways scrolling");
await browser.close();
