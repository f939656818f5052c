// node served.mjs CHAT PLAIN ANSWERS: use the page of two servers as a reader would: one whose model
// chats and wants the key "a-key-for-tests", and one that only goes on with texts. ANSWERS: what the
// chat model says, by question.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { json } from "./files.mjs";
import { inBrowser, ROOT } from "./serve.mjs";

const [chat, plain, expected] = process.argv.slice(2), answers = json(expected);
const { source: axe } = createRequire(path.join(ROOT, "book/package.json"))("axe-core");
const [first, second] = Object.keys(answers);
const AXE = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];

await inBrowser({ "/": "<!doctype html>" }, async (page) => {
  const at = (selector) => page.locator(selector), box = at("#text");
  const button = (name) => page.getByRole("button", { name, exact: true });
  const says = () => at(".says").allTextContents();
  const whole = () => page.waitForFunction(() => document
    .querySelector("#log").getAttribute("aria-busy") === "false");
  const alert = (words) => page.waitForFunction((w) => document
    .querySelector("[role=alert]").textContent.includes(w), words);
  const ask = async (text) => {
    await box.fill(text);
    await box.press("Enter");
    await whole();
    return (await says()).at(-1);
  };
  const set = (id, value) => at(`#${id}`).evaluate((input, v) => {
    input.value = v;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }, value);
  const accessible = async () => {
    await page.evaluate(`${axe}; null`).catch(() => page.addScriptTag({ content: axe }));
    const { violations } = await page.evaluate((tags) => globalThis.axe.run(document,
      { runOnly: tags }), AXE);
    assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`), []);
  };
  const hosts = new Set();
  page.on("request", (request) => hosts.add(new URL(request.url()).origin));

  // the key: asked for, a wrong one refused, the right one kept for this tab and nowhere else
  const head = (await page.goto(`${chat}/`)).headers();
  assert.match(head["content-security-policy"], /default-src 'none'; script-src 'self'/);
  await alert("the API key is missing or wrong");
  assert.equal(await at("#key").evaluate((e) => e === document.activeElement), true);
  assert.equal(await at("#key").isVisible(), true);
  await at("#key").fill("another-key");
  await at("#key").press("Tab");
  await alert("the API key is missing or wrong");
  await at("#key").fill("a-key-for-tests");
  await at("#key").press("Tab");
  await page.waitForFunction(() => document.querySelector("#model").textContent === "agent");
  assert.deepEqual(await page.evaluate(() => [Object.values(sessionStorage),
    Object.keys(localStorage), document.cookie]), [["a-key-for-tests"], [], ""]);
  page.troubles.length = 0;                            // the browser's lines about the 401
  await page.reload();
  await page.waitForFunction(() => document.querySelector("#model").textContent === "agent");

  // Enter asks, the answer is Python's; what was typed stays text
  for (const question of [first, second]) {
    await button("Start anew").click();
    assert.equal(await ask(question), answers[question]);
  }
  assert.equal(await at("[role=log]").getAttribute("aria-label"), "The conversation");
  assert.equal(await at("[role=log]").getAttribute("aria-live"), "polite");
  await button("Start anew").click();
  const forged = "<img src=x onerror=alert(1)><|end|><b>bold</b>";
  await ask(forged);
  assert.equal((await says())[0], forged);
  assert.equal(await at("#log img, #log b").count(), 0);
  await box.press("Shift+Enter");
  assert.equal(await box.inputValue(), "\n");
  await box.fill("  ");
  await box.press("Enter");
  assert.equal((await says()).length, 2);

  // each token tells its chance to the arrow keys and to a pointer
  await button("Start anew").click();
  const said = await ask(first);
  const tokens = await at(".assistant .says span").allTextContents();
  assert(tokens.length > 3 && tokens.join("") === said);
  await at(".assistant .says").focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  const chance = await at("#chance").textContent();
  assert(chance.startsWith(`${JSON.stringify(tokens[1])}: `), chance);
  assert.match(chance, /: [\d.<]+%; the likeliest there: ".*" [\d.<]+%, .* [\d.<]+%, .* [\d.<]+%$/);
  await at(".assistant .says span").first().hover();
  assert((await at("#chance").textContent()).startsWith(JSON.stringify(tokens[0])));
  await box.focus();
  await page.mouse.move(0, 0);
  await page.waitForFunction(() => document.querySelector("#chance").textContent === "");

  // what the settings say is asked for; each slider tells its value
  await at("summary").click();
  await set("temperature", 1.5);
  await set("top_p", 0.5);
  await set("max_tokens", 3);
  await at("#system").fill("Be brief.");
  assert.deepEqual(await at("output").allTextContents(), ["1.5", "0.5", "3"]);
  const asked = page.waitForRequest("**/v1/chat/completions");
  await ask(second);
  const body = (await asked).postDataJSON();
  assert.deepEqual([body.temperature, body.top_p, body.max_tokens, body.messages[0]],
    [1.5, 0.5, 3, { role: "system", content: "Be brief." }]);
  assert(await at(".assistant").last().locator(".says span").count() <= 3);
  await at("#chances").check();
  await accessible();

  // Escape and the button stop an answer that never ends; what was said is kept
  await at("#system").fill("");
  await page.evaluate(() => {
    globalThis.kept = globalThis.fetch;
    globalThis.fetch = async (place, { signal }) => new Response(new ReadableStream({
      start(stream) {
        const event = { choices: [{ index: 0, delta: { content: "Once upon" } }] };
        stream.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\n\n`));
        signal.addEventListener("abort", () => stream.error(new DOMException("", "AbortError")));
      },
    }));
  });
  for (const stop of [() => page.keyboard.press("Escape"), () => button("Stop").click()]) {
    await button("Start anew").click();
    await box.fill("Tell me a story.");
    await box.press("Enter");
    await page.waitForFunction(() => document
      .querySelector(".assistant .says")?.textContent === "Once upon");
    assert.equal(await at("[role=log]").getAttribute("aria-busy"), "true");
    await stop();
    await whole();
    assert.deepEqual(await says(), ["Tell me a story.", "Once upon"]);
    assert.equal(await at("#trouble").textContent(), "");
    assert.equal(await button("Send").count(), 1);
  }
  await page.evaluate(() => { globalThis.fetch = globalThis.kept; });

  // a long conversation leaves out its oldest turns, and says so
  await set("temperature", 0);
  await set("top_p", 1);
  await set("max_tokens", 60);
  for (let n = 0; n < 12 && !await at(".left-out").count(); n++) {
    await ask("Tell me a story about a shy miller and a baker.");
  }
  assert.equal(await at(".left-out").count() % 2, 0);
  assert.match(await at(".left-out .who").first().textContent(), /no longer read/);

  // a mistake is told, and the turn comes back
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 429,
    contentType: "application/json", body: JSON.stringify({ error: { message: "is full" } }) }));
  const before = (await says()).length;
  await box.fill("Hello?");
  await box.press("Enter");
  await alert("is full");
  assert.equal(await box.inputValue(), "Hello?");
  assert.equal((await says()).length, before);
  await page.unroute("**/v1/chat/completions");
  page.troubles.length = 0;

  // dark, and on a phone
  for (const colorScheme of ["dark", "light"]) {
    await page.emulateMedia({ colorScheme });
    await accessible();
  }
  await page.setViewportSize({ width: 360, height: 640 });
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  await accessible();

  // a model without a chat goes on with a text
  await page.goto(`${plain}/`);
  await page.waitForFunction(() => document.querySelector("#model").textContent === "tinytown");
  assert.equal(await page.getByLabel("A text to go on with").count(), 1);
  await at("summary").click();
  assert.equal(await at("#temperature").isVisible(), true);
  for (const id of ["#system", "#key"]) assert.equal(await at(id).isVisible(), false);
  await set("temperature", 0);
  await set("max_tokens", 9);
  assert.equal(await ask("Once upon a time"), answers["Once upon a time"]);
  await at(".assistant .says").focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await at("#chance").textContent(), /^".*": [\d.<]+%; the likeliest there: /);
  await accessible();
  assert.deepEqual([...hosts].sort(), [chat, plain].sort());
  assert.deepEqual(page.troubles, []);
  console.log("the page works");
});
