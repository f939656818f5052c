// node quantize.mjs DOCUMENTS LOSSES: round the model as a reader would. DOCUMENTS: the file that the
// site has; LOSSES: what Python finds, by setting. The shelves' model is not served: this part must
// not ask for it.
import assert from "node:assert/strict";
import path from "node:path";
import { compared, curves, histogram, title } from "../../book/_static/page/quantize.js";
import { json } from "./files.mjs";
import { inBrowser, ROOT } from "./serve.mjs";
import { hand, stage } from "./stage.mjs";

const [documents, losses] = process.argv.slice(2), each = json(documents), wanted = json(losses);
const told = { ...each, float32: each.float32.reduce((a, b) => a + b) / each.float32.length };
const places = { "/": stage("quantize", "Once upon a time", "light"),
  "/dark/": stage("quantize", "Q: Where does Rita live?", "dark"),
  "/_static/": path.join(ROOT, "book/_static"), "/_static/page/quantize.json": documents,
  "/_static/tinytown/": path.join(ROOT, "minigpt/shipped/tinytown") };

assert.equal(title("blocks.3.mlp.down.weight"), "block 4: down");
assert.equal(title("embedding.weight"), "embedding");
assert.deepEqual([1.0003, 1.012, 0.99, 14.2].map(compared), ["as in float32", "1.2% above float32",
  "1.0% below float32", "14 times as much as in float32"]);
const one = { bins: [1, 0, 2, 1], reach: 1, scales: [1], middle: 1, count: 1 };
assert.equal(histogram(one, 2).match(/M[\d.]+ 0V100/g).length, 3);       // -1, 0, 1
assert.match(histogram(one, 2), /M0\.00 0V100M50\.00 0V100M100\.00 0V100/);
const { marks, paths } = curves([{ real: 4, loss: 100, reach: "row" },
  { real: 2, loss: 900, reach: "row" }], told);
assert(marks[0].top > marks[1].top && marks[0].left > marks[1].left);
assert.match(paths, /live-of-row" d="M[\d.]+ [\d.]+L/);

await inBrowser(places, async (page, origin) => {
  const { at, knob, says, open, accessible, fits, picture } = hand(page, origin, "quantize");
  const loss = (name) => wanted[name].toFixed(1).replace(".", "\\.");
  const float = loss("32"), end = `\\(${float}\\); the floor is ${told.floor.toFixed(1)}\\.$`;

  // it begins with 4 bits and one scale: the loss that Python finds
  await open("/");
  await says(new RegExp(`^4 bits and one scale for each matrix: really 4\\.00 bits a weight, .* ` +
    `The loss is ${loss("4 matrix")} bits a document, .* float32 ${end}`));
  await page.getByText("Measured on 14 documents").waitFor();
  assert.equal(await at("option").count(), 3 + 29);
  assert.match(await at(".live-text").textContent(), /^Once upon a time./);
  const drunk = await at(".live-made").textContent();
  assert.equal(await at(".quantize-mark").count(), 1);
  assert.match(await at("svg").nth(1).getAttribute("aria-label"), /4\.00 bits, one scale/);
  const levels = async () => (await at("path.quantize-level").first().getAttribute("d"))
    .split("M").length - 1;
  assert.equal(await levels(), 15);
  await accessible();

  // a scale for each row, then for each group: by the keyboard
  await knob("Scales").selectOption("row");
  await says(new RegExp(`^4 bits and a scale for each row: really 4\\.08 bits .* ${
    loss("4 row")} bits a document, [\\d.]+% above`));
  assert.notEqual(await at(".live-made").textContent(), drunk);
  assert.equal(await at("path.quantize-level").count(), 9);              // one, and eight rulers
  await knob("Bits of a weight").focus();
  await page.keyboard.press("ArrowLeft");
  await page.getByText(/^It reads: after \d+ of 14 documents, [\d.]+% above float32\.$/).waitFor();
  assert.equal(await knob("Bits of a weight").getAttribute("aria-valuetext"), "3 bits");
  await says(new RegExp(`^3 bits and a scale for each row: .* ${loss("3 row")} bits a document`));
  assert.equal(await levels(), 7);
  assert.equal(await at("path.live-of-row").count(), 1);                 // two points, one line
  await picture("light");

  // without the embedding: measured anew, and back again at once
  await knob("Round the embedding, too").press(" ");
  await says(new RegExp(`^3 bits .* ${loss("3 row, exact embedding")} bits a document`));
  assert.equal(await at(".quantize-mark").count(), 1);
  await knob("Round the embedding, too").press(" ");
  await says(new RegExp(`^3 bits .* ${loss("3 row")} bits a document`));

  // another matrix; all in float32; from there nothing is rounded
  await knob("Matrix to look at").selectOption("embedding.weight");
  await page.getByText("The weights of embedding", { exact: true }).waitFor();
  await knob("Bits of a weight").press("End");
  await says(new RegExp(`^All in float32: 7\\.28 MB\\. The loss is ${float} bits a document, as in`));
  await page.getByText("Nothing is rounded.").waitFor();
  assert(await knob("Scales").isDisabled());
  assert.equal(await at("path.quantize-level").count(), 0);

  // a text of the reader's; what was asked before is forgotten
  const best = await at(".live-made").textContent();
  await knob("A text to continue").fill("Q: What is 7 + 5?\nA:");
  await page.waitForFunction((old) => {
    const made = document.querySelector("#quantize .live-made");
    return made && made.textContent !== old;
  }, best);
  assert.match(await at(".live-text").textContent(), /^Q: What is 7 \+ 5/);
  await knob("Bits of a weight").press("Home");
  await knob("Bits of a weight").press("ArrowRight");
  await says(new RegExp(`^3 bits and a scale for each row: .* ${loss("3 row")} bits`));
  await accessible();

  // on a phone, in the dark
  await page.setViewportSize({ width: 360, height: 740 });
  await open("/dark/");
  assert.equal(await knob("A text to continue").inputValue(), "Q: Where does Rita live?");
  await says(/^4 bits and one scale for each matrix: /);
  await fits();
  await accessible();
  await picture("phone");
  assert.deepEqual(page.troubles, []);

  // without the weights the picture stays, and a sentence says why
  await page.route("**/tinytown/model.safetensors", (route) => route.fulfill({ status: 404 }));
  await page.goto(origin);
  await page.getByText("This part stays a picture: model.safetensors could not be fetched (404)")
    .waitFor();
  assert.match(await at("p").first().textContent(), /^a picture$/);
  page.troubles.length = 0;                            // the browser's line about the 404
  console.log("rounding works");
});
