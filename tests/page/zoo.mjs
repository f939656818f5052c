// node zoo.mjs RUNS: use the zoo as a reader would; RUNS is the file that the site has.
// The book's model is not served here: this part must not ask for it.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { number, sampleAt } from "../../book/_static/page/zoo.js";
import { inBrowser, ROOT } from "./serve.mjs";

const { source: axe } = createRequire(path.join(ROOT, "book/package.json"))("axe-core");
const { animals } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const withText = (text, theme) => `<!doctype html><html lang="en" data-theme="${theme}"><title>t
</title><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>html { --pst-color-background: ${theme === "dark" ? "#14181e" : "#fff"};
--pst-color-text-base: ${theme === "dark" ? "#ced6dd" : "#222"};
--pst-color-text-muted: ${theme === "dark" ? "#9ca4af" : "#48566b"};
--pst-color-border: #8884; --pst-color-surface: #8881; background: var(--pst-color-background);
color: var(--pst-color-text-base) }</style><link rel="stylesheet" href="/_static/page/page.css">
<div class="live" id="zoo" data-live="zoo" data-text="${text}"><p>a picture</p></div>
<script type="module" src="/_static/page/start.js"></script></html>`;
const places = { "/": withText("length", "light"), "/judge/": withText("judge", "dark"),
  "/_static/": path.join(ROOT, "book/_static"),
  "/_static/page/zoo.json": path.resolve(process.argv[2]) };

assert.deepEqual(sampleAt([[0, "a"], [5, "b"], [10, "c"]], 7), [5, "b"]);
assert.deepEqual([number(-1.234), number(12.34), number(123.4)], ["−1.23", "12.3", "123"]);

await inBrowser(places, async (page, origin) => {
  const at = (selector) => page.locator(`#zoo ${selector}`);
  const button = (name) => page.getByRole("button", { name, exact: true });
  const knob = (label) => page.getByLabel(label, { exact: true });
  const says = (pattern) => page.waitForFunction((what) => new RegExp(what, "u")
    .test(document.querySelector("#zoo [role=status]").textContent), pattern.source,
  { timeout: 30_000 }).catch(async () => {
    assert.match(await at("[role=status]").textContent(), pattern);
  });
  const open = async (address) => {
    await page.goto(origin + address);
    await page.locator("#zoo.live-awake").waitFor();
  };
  const accessible = async () => {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run("#zoo"));
    assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`), []);
  };

  // it wakes before the first step, with all rewards to choose from
  await open("/");
  const { hack: [hack], cure: [cure], meant, remedy } = animals.length;
  await says(/^Before the first step: paid \d\.\d\d, in truth \d\.\d\d\.$/);
  assert.equal(await at("option").count(), Object.keys(animals).length);
  assert.match(await at("> p").first().textContent(), new RegExp(`^You mean: ${meant}\\.`));
  assert.equal(await at(".live-text").textContent(), hack.samples[0][1]);

  // by the keyboard: train, pause, go on, to the end
  await button("Train").focus();
  await page.keyboard.press("Enter");
  await says(/^It trains\.$/);
  await page.waitForFunction(() => document.querySelector("#zoo input").value > 2);
  await page.keyboard.press("Enter");
  await says(/^After \d+ steps: paid /);
  const paused = await knob("Steps").inputValue();
  await page.waitForTimeout(600);
  assert.equal(await knob("Steps").inputValue(), paused);
  await page.keyboard.press("Enter");
  const last = hack.reward.length - 1;
  await says(new RegExp(`^After ${last} steps: paid ${number(hack.reward[last])} \\(at first `));
  await says(new RegExp(`in truth ${number(hack.truth[last])} .* What would have told, .*%\\.$`));
  assert.equal(await at(".live-text").textContent(), hack.samples.at(-1)[1]);
  assert.equal(await at("path.live-of-held").count(), 2 * animals.length.hack.length);
  assert.equal(await at("path.live-of-counted").count(), 0);

  // the slider goes anywhere, and says where it is
  await knob("Steps").focus();
  await page.keyboard.press("Home");
  await says(/^Before the first step/);
  await page.keyboard.press("ArrowRight");
  await says(/^After 1 step: /);
  assert.match(await knob("Steps").getAttribute("aria-valuetext"), /^1 of \d+ steps$/);
  await page.keyboard.press("End");

  // the cure, beside what was hacked
  await button("Train with the cure").click();
  await says(new RegExp(`^The cure \\(${remedy}\\), .* in truth ${number(cure.truth.at(-1))} `));
  assert.equal(await at("path.live-of-held").count(), 2 * animals.length.hack.length);
  assert.equal(await at("path.live-of-counted").count(), 2 * animals.length.cure.length);
  assert.match(await at("svg").first().getAttribute("aria-label"), /^What you pay, with the cure/);
  await accessible();

  // every other reward: it begins anew, and its curves lie inside the picture
  for (const name of Object.keys(animals)) {
    await knob("You pay for").selectOption(name);
    await says(/^Before the first step/);
    await knob("Steps").focus();
    await page.keyboard.press("End");
    await says(new RegExp(`^After ${animals[name].hack[0].reward.length - 1} steps`));
    const ys = (await at("path").evaluateAll((all) => all.flatMap((p) =>
      [...p.getAttribute("d").matchAll(/ (-?[\d.]+|NaN)/g)].map((m) => +m[1]))));
    assert(ys.length > 40 && ys.every((y) => y >= 0 && y <= 100), name);
  }

  // on a phone, in the dark, with another animal to begin with, and without motion
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ reducedMotion: "reduce" });
  await open("/judge/");
  assert.equal(await knob("You pay for").inputValue(), "judge");
  await button("Train").click();                       // at once, for nothing may move
  await says(/^After \d+ steps/);
  assert(await page.evaluate(() => document.documentElement.scrollWidth <= 360));
  await accessible();
  if (process.env.PICTURES) await page.screenshot({ path: process.env.PICTURES, fullPage: true });
  assert.deepEqual(page.troubles, []);

  // without the file the picture stays, and a sentence says why
  await page.route("**/zoo.json", (route) => route.fulfill({ status: 404 }));
  await page.goto(origin);
  await page.getByText("This part stays a picture: the recorded runs could not be").waitFor();
  assert.match(await at("p").first().textContent(), /^a picture$/);
  page.troubles.length = 0;                            // the browser's line about the 404
  console.log("the zoo works");
});
