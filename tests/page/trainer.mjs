// node trainer.mjs NAMES: use the trainer as a reader would; NAMES is the file that the site has.
// The book's model is not served here: this part must not ask for it.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { inBrowser, ROOT } from "./serve.mjs";

const { source: axe } = createRequire(path.join(ROOT, "book/package.json"))("axe-core");
const withText = (text) => `<!doctype html><html lang="en"><title>t</title>
<link rel="stylesheet" href="/_static/page/page.css"><link rel="icon" href="data:,">
<div class="live" id="trainer" data-live="trainer" data-text="${text}"><p>a picture</p></div>
<script type="module" src="/_static/page/start.js"></script></html>`;
const places = { "/": withText("names of functions"), "/own/": withText("Anna\nBert\nOtto"),
  "/_static/": path.join(ROOT, "book/_static"),
  "/_static/page/names.txt": path.resolve(process.argv[2]) };
const RATE = { "0.2": "7", "20": "13", "100": "15" };          // places on the slider

await inBrowser(places, async (page, origin) => {
  const at = (selector) => page.locator(`#trainer ${selector}`);
  const knob = (label) => page.getByLabel(label, { exact: true });
  const press = (name) => page.getByRole("button", { name, exact: true }).click();
  const until = async (selector, pattern) => {
    const found = ([where, what]) => new RegExp(what, "u")
      .test(document.querySelector(where).textContent);
    await page.waitForFunction(found, [`#trainer ${selector}`, pattern.source]).catch(() => {});
    assert.match(await at(selector).first().textContent(), pattern);
  };
  const says = (pattern) => until("[role=status]", pattern);
  const measured = (pattern) => until(".live-count:not([role])", pattern);
  const held = async () => +(await at(".live-count:not([role])").textContent())
    .match(/held out ([\d.]+)/)[1];
  const names = async () => (await at(".live-names li").allTextContents()).join();
  const open = async (address) => {
    await page.goto(origin + address);
    await page.locator("#trainer.live-awake").waitFor();
  };

  // it wakes with a text and a model, and a curve that has not begun
  await open("/");
  await says(/^[2-9],\d{3} names to learn from, \d{3} held out\. The model has 784 numbers\.$/);
  await measured(/^Step 0: training 4\.81, held out 4\.81 bits a letter\.$/);
  assert.equal(await at("path.live-of-uniform").count(), 1);
  assert.match(await at(".live-key").textContent(), /knows nothing: 4\.81.*counted: 3\.[67]\d/);
  assert(await knob("Width").isHidden());                      // a table has none

  // one step by the keyboard; then it trains, the loss falls, the names change; it pauses
  const before = await names();
  await page.getByRole("button", { name: "Step", exact: true }).focus();
  await page.keyboard.press("Enter");
  await says(/^Step 1: on this batch the loss was 4\.\d\d bits a letter\.$/);
  assert.match(await at(".live-norms").textContent(), /^W0\.\d+$/);
  await press("Start");
  await says(/^It trains\.$/);
  await measured(/^Step [\d,]{3,}: training 3\.[67]\d/);
  await press("Pause");
  await says(/^Paused after [\d,]+ steps: training 3\.\d\d, held out 3\.\d\d bits a letter\.$/);
  assert.notEqual(await names(), before);
  assert.equal(await at(".live-names li").count(), 8);
  assert(await held() < 3.9);
  assert.match(await at("svg").getAttribute("aria-label"), /^The loss after [\d,]+ steps: train/);

  // nothing here keeps anybody out
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run("#trainer"));
  assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`), []);

  // a reset gives the same weights again; another model brings its own rate and batch
  await press("Reset");
  await measured(/^Step 0: training 4\.81/);
  await knob("Model").selectOption("mlp");
  await says(/The model has 7,452 numbers\.$/);
  assert.equal(await knob("Learning rate").getAttribute("aria-valuetext"), "0.2");
  assert.equal(await knob("Batch size").inputValue(), "32");
  await knob("Width").selectOption("16");
  await says(/The model has 2,220 numbers\.$/);
  await press("Start");
  await measured(/^Step [\d,]{3,}: training [34]\.[0-5]/);
  assert.equal(await at(".live-norms li").count(), 5);

  // the rate can be turned up while it trains: the loss climbs, and the page says why
  await knob("Learning rate").fill(RATE["100"]);
  await says(/^The loss has climbed from 4\.8\d to [\d,.]+ bits .* 100 is too high\. .* 0\.2\.$/);
  await press("Pause");
  await says(/^Paused/);

  // too high for the attention block: no number any more, and Start begins anew
  await knob("Model").selectOption("attention");
  await says(/The model has 6,192 numbers\.$/);
  await knob("Learning rate").fill(RATE["20"]);
  await press("Start");
  await says(/^At step \d+ the loss was no longer a number: the learning rate 20 is too high\./);
  await until(".live-names", /^None: the chances are no longer numbers/);
  assert.equal(await page.getByRole("button", { name: "Start", exact: true }).count(), 1);
  await knob("Learning rate").fill(RATE["0.2"]);
  await press("Start");
  await measured(/^Step \d{2,}: training 4/);
  await press("Pause");
  await knob("Initialisation").selectOption("none");
  await measured(/^Step 0: training [\d,]{2,}/);
  await press("Start");
  await says(/^At step \d+ .*: unscaled weights cannot take the learning rate 0\.2\. Choose/);
  await knob("Initialisation").selectOption("scaled");
  await knob("Model").selectOption("bigram");

  // a text of one's own: capitals, signs, nothing at all, too much
  await knob("Text").selectOption("own");
  await says(/^There is no letter from a to z in your text: write or paste names, one a line\.$/);
  await press("Start");
  await says(/^There is no letter/);
  await knob("Your names, one a line").fill("Anna\n🙂\nBERT 7\nzoé\n\n");
  await says(/^3 names to learn from, none held out: too few of them differ\. The model has /);
  await says(/ Left out: 4 signs other than a to z and _, 1 line without a letter\.$/);
  await press("Start");
  await measured(/^Step [\d,]{2,}: training [01]\.\d\d bits a letter\.$/);
  await knob("Your names, one a line").evaluate((box) => {       // typing that would take minutes
    box.value = "anna\n".repeat(50_000);
    box.dispatchEvent(new Event("input"));
  });
  await says(/^40,000 names .* Left out: what follows the first 200,000 characters\.$/);
  await knob("Your names, one a line").fill("🙂");
  await says(/^There is no letter/);
  await knob("Text").selectOption("names");
  await says(/^[2-9],\d{3} names/);

  // a page may begin with a text of its own
  await open("/own/");
  assert.equal(await knob("Your names, one a line").inputValue(), "Anna\nBert\nOtto");
  await says(/^3 names to learn from/);
  assert.deepEqual(page.troubles, []);

  // without the file: one sentence, and a pasted text still works
  await page.route("**/names.txt", (route) => route.fulfill({ status: 404 }));
  await open("/");
  await says(/^The page could not fetch the names of functions \(404\): paste a text of your /);
  await knob("Your names, one a line").fill("anna\nbert");
  await press("Start");                                        // before the page has read it
  await measured(/^Step [\d,]{3,}: training/);
  await page.waitForTimeout(400);
  await press("Pause");
  page.troubles.length = 0;                                    // the browser's line about the 404
  console.log("the trainer works");
});
