// node parts.mjs FOLDER BOOK: use every live part as a reader would; FOLDER holds another model,
// BOOK the one that the site has, in weights of 8 bits.
import assert from "node:assert/strict";
import path from "node:path";
import { inBrowser, ROOT } from "./serve.mjs";

const [other, book] = process.argv.slice(2).map((folder) => path.resolve(folder));
const part = (kind, text) =>
  `<div class="live" id="${kind}" data-live="${kind}" data-text="${text}"><p>a picture</p></div>`;
const prediction = (id, facts, field) =>
  `<div class="predict" id="${id}" data-page="p" data-id="${id}" ${facts}><p>Question</p>
   <form hidden>${field}<button>Commit</button></form><p class="predict-says"></p>
   <details><summary>Answer</summary>Because.</details></div>`;
const html = `<!doctype html><html lang="en"><title>t</title>
<link rel="stylesheet" href="/_static/page/page.css"><link rel="icon" href="data:,">
${part("tokens", "strawberry 🙂")}${part("attention", "Lena has a duck. Lena")}
${part("machine", "Once upon a")}${part("sampler", "Once upon a time")}
${part("cache", "Once upon a time")}${part("kin", "green")}${part("story", "Once upon a time")}
${part("graph", "p = a * b; d = p + c; d * d; a = 2; b = 3; c = -4")}
${part("trainer", "anna&#10;bert&#10;otto")}
${prediction("n", 'data-kind="number" data-answer="1,000" data-within="10%"',
    '<input type="text" name="guess">')}
${prediction("c", 'data-kind="choice" data-answer="b"',
    '<input type="radio" name="guess" value="a"><input type="radio" name="guess" value="b">')}
${prediction("s", 'data-kind="text" data-answer="(2, 5)"', '<input type="text" name="guess">')}
<script type="module" src="/_static/page/start.js"></script></html>`;

const places = { "/": html, "/_static/": path.join(ROOT, "book/_static"),
  "/_static/tinytown-8bit/": book };

await inBrowser(places, async (page, origin) => {
  const at = (selector, options) => page.locator(selector, options);
  const texts = (selector) => at(selector).allTextContents();
  const wake = async (kind) => {
    await at(`#${kind}`).scrollIntoViewIfNeeded();
    await at(`#${kind}.live-awake`).waitFor();
  };
  const says = async (selector, pattern) => {        // a part answers when the reader pauses
    for (let n = 0; n < 100; n++) {
      if (pattern.test(await at(selector).first().textContent())) return;
      await page.waitForTimeout(50);
    }
    assert.match(await at(selector).first().textContent(), pattern);
  };
  const type = (kind, text) => at(`#${kind} textarea`).fill(text);
  await page.goto(`${origin}/book/`);

  // tokens: ids, bytes and merges, by mouse and by keyboard
  await wake("tokens");
  await says("#tokens .live-count", /^12 characters, 15 bytes, \d+ tok/);
  await type("tokens", " the the");
  await says("#tokens .live-count", /^8 characters/);
  assert.equal((await texts("#tokens .live-token")).length, 2);
  await at("#tokens .live-token").nth(1).focus();
  await page.keyboard.press("Enter");
  await says("#tokens .live-story", /^␣the has the id \d+\. Its 4 bytes/);
  assert.equal((await texts("#tokens .live-stages li")).at(0), "Single bytes␣the");
  await type("tokens", "");
  await says("#tokens .live-count", /^0 characters, 0 bytes, 0 tokens/);

  // attention: every head, the future hidden
  await wake("attention");
  assert.equal(await at("#attention .live-heads button").count(), 16);
  await at("#attention .live-token").nth(2).click();
  await says("#attention .live-story", /\d+ after it are hidden/);
  await at("#attention .live-heads button").nth(5).click();
  await says("#attention .live-story", /^Layer 2, head 2/);

  // the machine: forwards to the chances and back
  await wake("machine");
  const stations = +await at("#machine input[type=range]").getAttribute("max");
  for (let n = 0; n < stations; n++) await at("#machine button", { hasText: "On ▶" }).click();
  await says("#machine .live-station", /chances2560.*others/);
  const on = at("#machine button", { hasText: "On ▶" });
  assert.equal(await on.getAttribute("aria-disabled"), "true");
  await at("#machine button", { hasText: "Back" }).first().click();
  await says("#machine .live-station", /^logits/);
  await at("#machine .live-map button").nth(2).click();
  await says("#machine .live-station", /^block 2: query/);

  // sampling: take a road, go back, greedy, and run
  await wake("sampler");
  const first = (await texts("#sampler .live-bars code"))[0];
  await at("#sampler .live-bars button").first().click();
  assert.equal((await texts("#sampler .live-made")).join("").trim(), first.replace("␣", ""));
  await at("#sampler .live-bars button").nth(1).click();
  assert.equal((await texts("#sampler .live-made")).length, 2);
  await at("#sampler .live-made").first().focus();
  await page.keyboard.press("Enter");
  assert.equal((await texts("#sampler .live-made")).length, 0);
  assert.equal((await texts("#sampler .live-bars code"))[0], first);
  await at("#sampler input[type=range]").first().fill("0");
  await says("#sampler .live-count", /^1 of 2,560 tokens/);
  await at("#sampler button", { hasText: "Let it run" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#sampler .live-made").length > 8);
  await at("#sampler button", { hasText: "Stop" }).click();

  // the cache: a step computes one token and finds the rest
  await wake("cache");
  await at("#cache button", { hasText: "Next token" }).click();
  await says("#cache .live-story", /computed 8 keys and values and found \d+ again/);
  assert.equal(await at("#cache .live-steps li").count(), 2);

  // neighbours: colours beside a colour, and a click goes on from there
  await wake("kin");
  assert((await texts("#kin .live-bars code")).includes("␣blue"));
  await at("#kin .live-bars button").first().click();
  assert((await texts("#kin .live-bars code")).includes("␣green"));
  await at("#kin input[type=text]").fill("xylophone");
  await says("#kin .live-count", /more than one token/);

  // the story writes by itself
  await wake("story");
  await page.waitForFunction(() => document.querySelectorAll("#story .live-made").length > 5);
  await at("#story button", { hasText: "Stop" }).click();

  // the graph: forward, step by step back, all, another formula, other numbers, mistakes
  await wake("graph");
  assert.equal(await at("#graph .live-model").count(), 0);
  const press = (name) => at("#graph button", { hasText: name }).click();
  const status = "#graph .graph-says", slopesShown = () => texts("#graph .graph-slope");
  const shows = async (words) => assert((await texts("#graph .graph-value")).includes(words),
    `${words} is not among ${await texts("#graph .graph-value")}`);
  await says(status, /^Forward is done: d \* d is 4\. Now step back/);
  assert.equal(await at("#graph .graph-value").count(), 6);
  assert.equal(await at("#graph .graph-line").count(), 6);           // d * d: two lines from one d
  await press("Step back");
  await says(status, /^The walk begins: the slope of d \* d is 1/);
  await press("Step back");
  await says(status, /^d \* d passes 1 × 2 = 2 on to d and 1 × 2 = 2 on to d once more\. Tog/);
  await says(status, /\. Together d has 2 \+ 2 = 4\.$/);
  await shows("d = p + c= 2slope 2 + 2 = 4");
  assert.equal((await texts("#graph .graph-by.graph-now")).join(" ").replaceAll("\u2009", " "),
    "× 2 = 2 × 2 = 2");
  await at("#graph button", { hasText: "Step back" }).focus();
  await page.keyboard.press("Enter");
  await says(status, /^d passes 4 × 1 = 4 on to p and 4 × 1 = 4 on to c\.$/);
  await press("Step back");
  await says(status, /^p passes 4 × 3 = 12 on to a and 4 × 2 = 8 on to b\. All slopes are the/);
  await says(status, /: a 12, b 8 and c 4\.$/);
  await at("#graph input[type=range]").first().fill("1");            // a = 1: d = -1
  await says(status, /All slopes are there: a −6, b −2 and c −2\./);
  await at("#graph input[type=number]").first().fill("2");
  await says(status, /: a 12, b 8 and c 4\./);
  await at("#graph input[type=number]").first().fill("");
  await says(status, /^a has no value: write a number into its field\./);
  await at("#graph input[type=number]").first().fill("2");
  await press("Reset");
  await says(status, /^Press Forward/);
  await shows("p = a * b= ?");
  assert((await slopesShown()).every((words) => words === ""));
  await press("Forward");
  await says(status, /^Forward is done/);
  await press("All");
  await says(status, /: a 12, b 8 and c 4\./);
  const formula = at("#graph input[type=text]");
  await formula.fill("b = a + a; c = b + b; a = 1");
  await says(status, /^a is used before it is made: put a = … first\./);
  await formula.fill("b = a + a; c = b + b");
  await says(status, /^Forward is done: c is 8\./);
  assert.equal(await at("#graph input[type=number]").count(), 1);
  await press("All");
  await says(status, /Together a has 2 \+ 2 = 4\. All slopes are there: a 4\./);
  await formula.fill("t = a * a; t * a + tanh(t)");
  await says(status, /^Forward is done/);
  for (let n = 0; n < 3; n++) await press("Step back");
  await says(status, /More is to come for t and a\.$/);
  const mistakes = [["1/0", /^Division by zero in 1\/0: what stands below must not be 0\.$/],
    ["a +", /^After \+ something is missing/], ["eval(1)", /^“eval” is no function here/],
    ["log(0-1)", /^In log\(0-1\): the logarithm of −1 is no number; it must be above 0\.$/]];
  for (const [wrong, words] of mistakes) {
    await formula.fill(wrong);
    await says(status, words);
    assert.equal(await formula.getAttribute("aria-invalid"), "true");
  }
  await formula.fill("log(a)");
  await says(status, /^Forward is done/);
  await press("All");
  await at("#graph input[type=range]").first().fill("-1");
  await says(status, /^In log\(a\): the logarithm of −1 is no number/);
  await at("#graph input[type=range]").first().fill("4");
  await says(status, /All slopes are there: a 0\.25\.$/);

  // the trainer learns its names by heart, beside parts that run the book's model
  await wake("trainer");
  await at("#trainer button", { hasText: "Start" }).click();
  await page.waitForFunction(() => /^Step [\d,]{2,}: training [01]\./.test(
    document.querySelector("#trainer .live-count:not([role])").textContent));
  await at("#trainer button", { hasText: "Pause" }).click();
  await says("#trainer [role=status]", /^Paused after [\d,]+ steps: training [01]\./);
  assert.equal(await at("#trainer .live-names li").count(), 8);

  // another model: every part of the page runs it, and it is still there after a reload
  await at("#tokens .live-model summary").click();
  const files = ["model.safetensors", "tokenizer.json", "config.json"];
  await at("#tokens input[type=file]").nth(1).setInputFiles(files.map((f) => path.join(other, f)));
  await page.waitForFunction(() => [...document.querySelectorAll(".live-model-name")]
    .every((s) => !s.textContent.includes("the book's model")));
  assert.equal(await at("#attention .live-heads button").count(), 8);       // two layers of four
  await page.reload();
  await wake("attention");
  assert.equal(await at("#attention .live-heads button").count(), 8);
  await at("#attention .live-model summary").click();
  await at("#attention button", { hasText: "Back to the book's model" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#attention .live-heads button")
    .length === 16);
  await at("#attention input[type=file]").nth(1).setInputFiles(path.join(other, files[0]));
  await page.waitForFunction(() => document.querySelectorAll("#attention .live-heads button")
    .length === 8);                                   // the file alone is enough
  await at("#attention button", { hasText: "Back to the book's model" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#attention .live-heads button")
    .length === 16);
  await at("#attention input[type=file]").nth(1).setInputFiles(path.join(other, "config.json"));
  await page.waitForFunction(() => document.querySelector("#attention .live-model-name")
    .textContent.includes("no model.safetensors"));

  // predictions: commit first, then the answer; kept in the browser
  assert(await at("#n details").isHidden());
  await at("#n button").click();
  await says("#n .predict-says", /Commit to a guess first/);
  await at("#n input").fill("many");
  await at("#n button").click();
  await says("#n .predict-says", /not a number/);
  await at("#n input").fill("950 MB");
  await page.keyboard.press("Enter");
  await says("#n .predict-says", /^You said 950 MB\. Right/);
  await at("#c input").first().check();
  await at("#c button").click();
  await says("#c .predict-says", /^You said a\. It is b/);
  await at("#s input").fill("2 × 5");
  await at("#s button").click();
  await says("#s .predict-says", /Right/);
  await page.reload();
  await at("#n details").waitFor();
  await says("#n .predict-says", /^You said 950 MB\. Right/);
  console.log("every part works");
});
