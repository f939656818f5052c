// node recorder.mjs RECORDING OWN WRONG: use the recorder as a reader would; OWN is another
// recording, WRONG a file that is none. The book's model is not served: it must not ask for it.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { drawing, place, rowAt } from "../../book/_static/page/recorder.js";
import { openRecording } from "../../book/_static/page/recording.js";
import { inBrowser, ROOT } from "./serve.mjs";
import { hand, stage } from "./stage.mjs";

const [file, own, wrong] = process.argv.slice(2).map((name) => path.resolve(name));
const { buffer, byteOffset, length } = fs.readFileSync(file);
const run = openRecording(buffer.slice(byteOffset, byteOffset + length));
const last = run.steps.at(-1), end = run.steps.length - 1;
const places = { "/": stage("recording", "Once upon a time&#10;Abel has a", "light"),
  "/dark/": stage("recording", "Once upon a time", "dark"),
  "/_static/": path.join(ROOT, "book/_static"), "/_static/page/recording.safetensors": file };

assert.deepEqual([place(0, 99), place(9, 99), place(99, 99)].map(Math.round), [0, 50, 100]);
assert.equal(rowAt([{ step: 1 }, { step: 5 }, { step: 9 }], 7).step, 5);
assert.equal(rowAt([{ step: 1 }], 0).step, 1);
const { paths, ups, alongs } = drawing(run.rows, last, run.steps[3]);
for (const [, x, y] of paths.matchAll(/(-?[\d.]+|NaN) (-?[\d.]+|NaN)/g)) {
  assert(x >= 0 && x <= 100 && y >= 0 && y <= 100, `${x} ${y}`);
}
assert.equal(ups.at(0)[0], 0);
assert.deepEqual(alongs.at(-1), [last, 100]);
assert(drawing([], 1, 0).paths.includes("live-of-held"));          // an empty log draws too

await inBrowser(places, async (page, origin) => {
  const { at, knob, button, says, open, accessible, fits, picture } =
    hand(page, origin, "recording");
  const step = (n) => run.steps[n].toLocaleString("en");
  const story = () => at(".live-made").textContent();
  const bets = () => at(".live-bars li").allTextContents();

  // it wakes before the first step
  await open("/");
  await says(/^Before the first step: loss \d\.\d\d\.$/);
  assert.equal(await knob("Snapshot").getAttribute("max"), String(end));
  assert.equal(await at(".live-bars li").count(), 6);
  assert.equal(await at(".live-heads button").count(), run.config.n_layer * run.config.n_head);
  const babble = [await story(), (await bets()).join()];
  assert(babble[0].length > 20);

  // drag by the keyboard: the curve's marker, the story, the bets and the maps follow
  await knob("Snapshot").focus();
  await page.keyboard.press("ArrowRight");
  await says(new RegExp(`^After step ${step(1)} of ${last.toLocaleString("en")}: loss `));
  assert.equal(await knob("Snapshot").getAttribute("aria-valuetext"),
    `step ${step(1)} of ${last.toLocaleString("en")}`);
  await page.keyboard.press("End");
  await says(new RegExp(`^After step ${step(end)} of `));
  assert.notEqual(await story(), babble[0]);
  assert.notEqual((await bets()).join(), babble[1]);
  assert.match(await at("path.live-of-held").getAttribute("d"), /^M100\.00 0V100$/);
  assert.match(await at("svg").first().getAttribute("aria-label"), /^The loss along the run/);

  // the same seed writes the same; another seed another story
  const told = await story();
  await page.keyboard.press("Home");
  await says(/^Before the first step/);
  assert.equal(await story(), babble[0]);
  await page.keyboard.press("End");
  assert.equal(await story(), told);
  await button("Another seed").click();
  assert.notEqual(await story(), told);

  // sentences of the reader's
  await knob("A text to continue").fill("Once upon a time there was a shy");
  await page.waitForFunction(() => document.querySelector("#recording .live-text span")
    .textContent.endsWith("shy"));
  await knob("A sentence to read").fill("Abel has a goat called");
  await page.waitForFunction((old) => [...document.querySelectorAll("#recording .live-bars li")]
    .map((e) => e.textContent).join() !== old, (await bets()).join());
  await button("Layer 2, head 3: 2.3").click();
  assert.equal(await button("Layer 2, head 3: 2.3").getAttribute("aria-pressed"), "true");
  await at(".live-count").getByText(/^Layer 2, head 3: the last token, ␣called, reads /).waitFor();
  await knob("A sentence to read").fill("");           // nothing but the marker is read
  await at(".live-count").getByText(/^Layer 2, head 3: the last token, <\|endoftext\|>/).waitFor();
  await knob("A sentence to read").fill("Abel has a");
  await picture("light");
  await accessible();

  // play, pause, to the end
  await button("Play").focus();
  await page.keyboard.press("Enter");                  // from the end: anew
  await says(/^It learns\.$/);
  await page.waitForFunction(() => document.querySelector("#recording input").value > 1);
  await page.keyboard.press("Enter");
  await says(/^After step /);
  const paused = await knob("Snapshot").inputValue();
  await page.waitForTimeout(1500);
  assert.equal(await knob("Snapshot").inputValue(), paused);
  await knob("Snapshot").fill(String(end - 1));
  await button("Play").click();
  await says(new RegExp(`^After step ${step(end)} of `));
  await button("Play").waitFor();

  // a file that is none is refused in a sentence, and what plays goes on
  const plays = at(".live-model-name");
  await at("summary").click();
  await at("input[type=file]").setInputFiles(wrong);
  await plays.getByText(/recording/).waitFor();
  await page.waitForFunction(() => /choose a recording\.safetensors that minigpt train --record/u
    .test(document.querySelector("#recording .live-model-name").textContent));
  assert.equal(await knob("Snapshot").inputValue(), String(end));

  // a recording of the reader's, and back
  await at("input[type=file]").setInputFiles(own);
  await page.waitForFunction(() => /your own\.safetensors/u
    .test(document.querySelector("#recording .live-model-name").textContent));
  await says(/^Before the first step/);
  assert.notEqual(await knob("Snapshot").getAttribute("max"), String(end));
  await accessible();
  await button("Back to the book's recording").click();
  assert.equal(await knob("Snapshot").getAttribute("max"), String(end));

  // on a phone, in the dark, without motion: a press is one snapshot
  await page.setViewportSize({ width: 360, height: 740 });
  await page.emulateMedia({ reducedMotion: "reduce" });
  await open("/dark/");
  await button("One snapshot on").click();
  await says(new RegExp(`^After step ${step(1)} of `));
  await page.waitForTimeout(1500);
  assert.equal(await knob("Snapshot").inputValue(), "1");
  await knob("Snapshot").press("End");
  await fits();
  await accessible();
  await picture("phone");
  assert.deepEqual(page.troubles, []);

  // without the file the picture stays, and a sentence says why
  await page.route("**/recording.safetensors", (route) => route.fulfill({ status: 404 }));
  await page.goto(origin);
  await page.getByText("This part stays a picture: the recording could not be").waitFor();
  page.troubles.length = 0;                            // the browser's line about the 404
  console.log("the recorder works");
});
