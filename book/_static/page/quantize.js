/* Rounded weights: choose the bits and the reach of a scale; see the grid, the size, the loss, and
   what the model then writes. The model and its arithmetic live in quantize-worker.js. */
import { field, h, later } from "./shell.js";

const BITS = [2, 3, 4, 5, 6, 8, 32], BEGIN = 4;
const REACHES = { matrix: "one for the matrix", row: "one for each row",
  group: "one for each group of 32" };
const WITH = { matrix: "one scale for each matrix", row: "a scale for each row",
  group: "a scale for each group of 32" };
const MARKS = { matrix: "■", row: "●", group: "▲" };
const MOST_BITS = 9, TICKS = [100, 200, 500, 1000, 2000, 5000];

const number = (n, digits = 0) => n.toLocaleString("en",
  { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`;
/** A loss beside that of float32, of which it is a multiple. */
export function compared(times) {
  const more = 100 * (times - 1);
  if (Math.abs(more) < 0.05) return "as in float32";
  return more >= 1000 ? `${number(times)} times as much as in float32`
    : `${number(Math.abs(more), 1)}% ${more > 0 ? "above" : "below"} float32`;
}
/** blocks.0.attention.query.weight as a reader calls it. */
export const title = (name) => name.replace(/^blocks\.(\d+)\.\w+\.(\w+)\.weight$/,
  (_, layer, part) => `block ${+layer + 1}: ${part}`).replace(/^(\w+)\.weight$/, "$1");

/** A histogram and the levels of a grid over it, in a square of 100 by 100; below, other grids of
    the same matrix, each a ruler of its own. */
export function histogram({ bins, reach, scales, middle, count }, bits) {
  const foot = count > 1 ? 70 : 100, tall = Math.max(...bins), wide = 100 / bins.length;
  const bars = bins.map((n, i) => (n ? `M${(i * wide).toFixed(2)} ${foot}v${
    -Math.max(1, 0.96 * foot * n / tall).toFixed(2)}h${(0.9 * wide).toFixed(2)}V${foot}z` : ""));
  const most = 2 ** (bits - 1) - 1;
  const ruler = (scale, top, bottom) => Array.from({ length: 2 * most + 1 }, (_, i) =>
    `M${(50 + 50 * (i - most) * scale / reach).toFixed(2)} ${top}V${bottom}`).join("");
  const high = (100 - foot) / scales.length, dense = bits > 5 ? " quantize-dense" : "";
  const lines = scales.length ? [ruler(middle ?? scales[0], 0, foot)] : [];
  if (count > 1) lines.push(...scales.map((scale, i) =>
    ruler(scale, (foot + i * high + 0.25 * high).toFixed(2), (foot + (i + 1) * high).toFixed(2))));
  return `<path class="quantize-bars" d="${bars.join("")}"/>` + lines.map((d) =>
    `<path class="live-line quantize-level${dense}" d="${d}"/>`).join("");
}

/** The losses that were measured, over the real bits of a weight: paths for a square of 100 by
    100, the ticks at its side, and a mark for each measurement. The loss stands on a log scale. */
export function curves(measured, { floor, float32 }) {
  const most = Math.max(2 * float32, ...measured.map((m) => m.loss));
  const up = (loss) => 100 * Math.log(most * 1.1 / loss) / Math.log(most * 1.1 / (0.92 * floor));
  const across = (real) => 100 * (Math.min(real, MOST_BITS) - 1.5) / (MOST_BITS - 1.5);
  const path = (of, d) => `<path class="live-line live-of-${of}" d="${d}"/>`;
  const at = ({ real, loss }) => `${across(real).toFixed(2)} ${up(loss).toFixed(2)}`;
  const ticks = TICKS.filter((t) => t < most * 1.1 && t > 0.92 * floor);
  const paths = ticks.map((t) => path("rule", `M0 ${up(t).toFixed(2)}H100`));
  paths.push(path("floor", `M0 ${up(floor).toFixed(2)}H100`),
    path("float", `M0 ${up(float32).toFixed(2)}H100`));
  for (const reach of Object.keys(MARKS)) {
    const own = measured.filter((m) => m.reach === reach).sort((a, b) => a.real - b.real);
    if (own.length > 1) paths.push(path(reach, own.map((m, i) => `${i ? "L" : "M"}${at(m)}`)
      .join("")));
  }
  return { paths: paths.join(""), ticks: ticks.map((t) => [number(t), up(t)]),
    marks: measured.map((m) => ({ ...m, left: across(m.real), top: up(m.loss) })),
    across: [2, 3, 4, 5, 6, 8].map((b) => [b, across(b)]) };
}

export default async function quantize(host, { text }) {
  const worker = new Worker(new URL("quantize-worker.js", import.meta.url), { type: "module" });
  const facts = await new Promise((ok, no) => {
    worker.onmessage = ({ data }) => (data.kind === "open" ? ok(data) : no(new Error(data.message)));
    worker.onerror = (event) => {
      event.preventDefault();
      no(new Error("this browser runs no module in a worker; try a newer one."));
    };
    worker.postMessage({ task: "open", id: 0 });
  }).catch((error) => { worker.terminate(); throw error; });
  const measured = new Map();                          // setting -> { real, loss, reach, embedding }
  let id = 0, cost = null, asked = text;

  const [bitsLabel, slider] = field("Bits of a weight", "input",
    { type: "range", min: 0, max: BITS.length - 1, step: 1, value: BITS.indexOf(BEGIN) });
  const bitsSays = h("span", { "aria-hidden": "true" });
  const choice = (label, list) => field(label, "select", {}, Object.entries(list)
    .map(([value, name]) => h("option", { value }, name)));
  const [reachLabel, reach] = choice("Scales", REACHES);
  const names = Object.fromEntries(facts.matrices.map((name) => [name, title(name)]));
  const [matrixLabel, matrix] = choice("Matrix to look at", names);
  const [wholeLabel, whole] = field("Round the embedding, too", "input",
    { type: "checkbox", checked: true });
  const [promptLabel, prompt] = field("A text to continue", "input",
    { type: "text", maxlength: 200, autocomplete: "off", value: text });
  matrix.value = facts.matrices.find((name) => name.includes("query")) ?? facts.matrices[0];

  const chart = (kind) => {
    const box = h("div", { class: `live-chart quantize-${kind}` });
    box.innerHTML = '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"></svg>';
    return { box, svg: box.firstChild, marks: box.appendChild(h("div", { "aria-hidden": "true" })) };
  };
  const weights = chart("weights"), losses = chart("losses");
  const weightsHead = h("p", { class: "live-head" }), weightsSay = h("p", { class: "live-count" });
  const lossSays = h("p", { class: "live-count" });    // what it does now
  const says = h("p", { class: "live-count", role: "status" });
  const made = h("p", { class: "live-text" });
  const key = h("p", { class: "live-key" },
    ...Object.entries(WITH).flatMap(([kind, name]) => [h("span", {},
      h("b", { class: `quantize-key live-of-${kind}`, "aria-hidden": "true" }, MARKS[kind]), ` ${name}`), " "]),
    h("span", {}, h("i", { class: "live-of-float" }), ` float32: ${number(facts.float32, 1)}`), " ",
    h("span", {}, h("i", { class: "live-of-floor" }), ` floor: ${number(facts.floor, 1)}`));

  const bits = () => BITS[slider.value];
  const setting = () => (bits() === 32 ? "32"
    : `${bits()} ${reach.value} ${whole.checked}`);

  // ---- What the worker reports ----------------------------------------------------------------
  function drawWeights(portrait) {
    const { name, reach: far, count, zeros, error, scales } = portrait, levels = 2 ** bits() - 1;
    weights.svg.innerHTML = histogram(portrait, bits());
    const end = number(far, 2), rounding = bits() === 32 ? "Nothing is rounded."
      : `${number(count)} grid${count === 1 ? "" : "s"} of ${levels} levels; ` +
        `${(100 * zeros).toFixed(zeros < 0.1 ? 1 : 0)}% of these weights become 0, and rounding ` +
        `moves one by ${(100 * error).toFixed(error < 0.1 ? 1 : 0)}% of a usual weight.`;
    weightsHead.textContent = `The weights of ${title(name)}`;
    weightsSay.textContent = rounding + (scales.length > 1 ? " Over the weights stand the levels " +
      "of the middle grid; below, eight of all grids, from the finest to the coarsest." : "");
    weights.svg.setAttribute("aria-label", `The weights of ${title(name)}, from −${end} to ${end}; ` +
      `most lie near 0. ${rounding}`);
    weights.marks.replaceChildren(
      h("span", { class: "quantize-at", style: "left:0" }, `−${end}`),
      h("span", { class: "quantize-at quantize-middle", style: "left:50%" }, "0"),
      h("span", { class: "quantize-at quantize-last", style: "right:0" }, end));
  }

  function drawLosses() {
    const all = [...measured.values()].filter((m) => m.embedding === whole.checked);
    const { paths, ticks, marks, across } = curves(all, facts), now = measured.get(setting());
    losses.svg.innerHTML = paths;
    losses.svg.setAttribute("aria-label", `The loss in bits a document, over the bits of a weight: ${
      all.map((m) => `${number(m.real, 2)} bits, ${WITH[m.reach]}: ${number(m.loss, 1)}`)
        .join("; ") || "nothing is measured yet"}. Float32 has ${number(facts.float32, 1)}, the ` +
      `floor is ${number(facts.floor, 1)}.`);
    losses.marks.replaceChildren(
      ...ticks.map(([says, y]) => h("span", { class: "live-tick", style: `top:${y}%` }, says)),
      ...across.map(([b, x]) => h("span", { class: "quantize-at quantize-middle",
        style: `left:${x}%` }, b)),
      ...marks.map((m) => h("span", { class: `quantize-mark live-of-${m.reach}${
        now?.loss === m.loss && now?.real === m.real ? " quantize-now" : ""}`,
      style: `left:${m.left}%;top:${m.top}%` }, MARKS[m.reach])));
  }

  /** All that the reader should know of this setting, in a sentence or two. */
  function tell(loss) {
    const { bytes, real } = cost, full = 4 * facts.size;
    const what = bits() === 32 ? `All in float32: ${megabytes(full)}.`
      : `${bits()} bits and ${WITH[reach.value]}: really ${number(real, 2)} bits a weight, ` +
        `${megabytes(bytes)} instead of ${megabytes(full)}.`;
    says.textContent = `${what} The loss is ${number(loss, 1)} bits a document, ` +
      `${compared(loss / facts.float32)} (${number(facts.float32, 1)}); the floor is ${
        number(facts.floor, 1)}.`;
  }

  const HEAR = {
    weights(data) {
      cost = data.cost;
      drawWeights(data.portrait);
      drawLosses();
      lossSays.textContent = "It writes.";
    },
    story({ text: said }) {
      made.replaceChildren(asked, h("span", { class: "live-made" }, said));
    },
    reading({ done, sum }) {
      const same = facts.each.slice(0, done).reduce((a, b) => a + b);      // as float32 read them
      lossSays.textContent = `It reads: after ${done} of ${facts.documents} documents, ` +
        `${compared(sum / same)}.`;
    },
    loss({ bits: loss }) {
      if (bits() < 32) {
        measured.set(setting(), { real: cost.real, loss, reach: reach.value,
          embedding: whole.checked });
      }
      lossSays.textContent = `Measured on ${facts.documents} documents, ${number(facts.tokens)} ` +
        "tokens, that training never saw.";
      drawLosses();
      tell(loss);
    },
    error({ message }) { says.textContent = `That went wrong: ${message}`; },
  };
  worker.onmessage = ({ data }) => { if (data.id === id) HEAR[data.kind](data); };

  // ---- What the reader does ---------------------------------------------------------------------
  function ask() {
    asked = prompt.value;
    worker.postMessage({ task: "show", id: ++id, wish: { bits: bits(), reach: reach.value,
      embedding: whole.checked, matrix: matrix.value, prompt: asked } });
  }
  function change() {
    bitsSays.textContent = bits();
    slider.setAttribute("aria-valuetext", `${bits()} bits`);
    reach.disabled = whole.disabled = bits() === 32;
    ask();
  }
  slider.addEventListener("input", change);
  for (const knob of [reach, whole, matrix]) knob.addEventListener("change", change);
  prompt.addEventListener("input", later(ask));

  host.replaceChildren(h("div", { class: "live-knobs quantize-knobs" },
    h("div", {}, bitsLabel, h("div", { class: "live-row" }, slider, bitsSays)),
    h("div", {}, reachLabel, reach), h("div", {}, matrixLabel, matrix),
    h("div", { class: "quantize-whole" }, whole, wholeLabel)), says,
  h("div", { class: "live-two" }, h("div", {}, weightsHead, weights.box, weightsSay),
    h("div", {}, h("p", { class: "live-head" }, "Loss, bits a document, over real bits a weight"),
      losses.box, lossSays)), key, promptLabel, prompt, made);
  change();
}
