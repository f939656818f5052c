// node batching.mjs: use the batch board as a reader would. No model is served.
import assert from "node:assert/strict";
import path from "node:path";
import { drawing, telling } from "../../book/_static/page/batching.js";
import { figures, requests, simulate } from "../../book/_static/page/board.js";
import { inBrowser, ROOT } from "./serve.mjs";
import { hand, stage } from "./stage.mjs";

const places = { "/": stage("batching", "static", "light"),
  "/dark/": stage("batching", "continuous chunked", "dark"),
  "/_static/": path.join(ROOT, "book/_static") };

const list = requests(0.3), timeline = simulate(list, { continuous: false, chunked: false });
assert.equal(telling(timeline[0], list, 1), "Step 1: request 1 reads its prompt of 60 tokens; request 2 " +
  "waits for others.");
assert.equal(drawing(timeline, 0).match(/board-empty/g).length, 4 * timeline.length);
assert.equal(drawing(timeline, 1).match(/board-(prefill|first|now)/g).length, 3);

await inBrowser(places, async (page, origin) => {
  const { at, knob, button, says, open, accessible, fits, picture } =
    hand(page, origin, "batching");
  const cells = () => at("> .board .board-decode, #batching > .board .board-prefill").count();
  const row = (n) => at("tbody tr").nth(n).locator("th, td").allTextContents();
  const figuresOf = (rate, chunked) => ["static", "continuous"].map((name) => {
    const all = requests(rate);
    const { steps, use, mean, p95, pause } = figures(all,
      simulate(all, { continuous: name === "continuous", chunked }));
    return [name, `${steps}`, `${Math.round(100 * use)}%`, mean.toFixed(1), `${p95}`, `${pause}`];
  });

  // it begins before the first request, with the figures of both policies
  await open("/");
  await says(/^14 requests will come\./);
  assert.equal(await cells(), 0);
  assert.deepEqual([await row(0), await row(1)], figuresOf(0.3, false));
  assert.equal(await at("tr[aria-current]").count(), 1);

  // step by step, by the keyboard
  await button("Step").focus();
  await page.keyboard.press("Enter");
  await says(/^Step 1: request 1 reads its prompt of 60 tokens; request 2 waits for others\.$/);
  await page.keyboard.press("Enter");
  await says(/^Step 2: request 2 reads its prompt of 90 tokens; request 1 waits for others\.$/);
  assert.equal(await at(".board-now").count(), 1);

  // play, pause, go on to the end
  await button("Play").focus();
  await page.keyboard.press("Enter");
  await says(/^It runs\.$/);
  await page.waitForFunction(() => document.querySelectorAll("#batching input")[2].value > 5);
  await page.keyboard.press("Enter");
  await says(/^Step \d+: /);
  const stopped = await knob("Steps").inputValue();
  await page.waitForTimeout(500);
  assert.equal(await knob("Steps").inputValue(), stopped);
  await knob("Steps").press("End");
  await says(new RegExp(`^Step ${timeline.length}: `));
  const busy = timeline.flatMap((c) => c.cells).filter((c) => ["prefill", "decode"].includes(c.kind));
  assert.equal(await cells(), busy.length);
  await accessible();

  // another policy, chunks, another rate: the same moment of another timeline
  await knob("Steps").fill("40");
  await knob("Batching").selectOption("continuous");
  await says(/^Step 40: /);
  assert.equal(await at("tr[aria-current] th").textContent(), "continuous");
  await picture("light");
  await knob("Chunked prefill").press(" ");
  assert.deepEqual([await row(0), await row(1)], figuresOf(0.3, true));
  await knob("Requests that arrive in a step").press("End");
  assert.equal(await knob("Requests that arrive in a step").getAttribute("aria-valuetext"),
    "1 a step");
  assert.deepEqual([await row(0), await row(1)], figuresOf(1, true));
  await button("Reset").click();
  await says(/^14 requests will come\./);

  // on a phone, in the dark, with another policy to begin with, and without motion
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ reducedMotion: "reduce" });
  await open("/dark/");
  assert.equal(await knob("Batching").inputValue(), "continuous");
  assert(await knob("Chunked prefill").isChecked());
  const swift = simulate(list, { continuous: true, chunked: true });
  await knob("Steps").fill("30");
  assert.equal(await at(".live-token").count(), swift[29].queue.length);
  await fits();
  await accessible();
  await picture("phone");
  await button("Play").click();                        // at once, for nothing may move
  await says(new RegExp(`^Step ${swift.length}: `));
  const seen = await at(".board-view").evaluate((e) => e.scrollLeft + e.clientWidth);
  assert(seen >= swift.length * 18, "the newest step is in view");
  console.log("the board works");
});
