/* The trainer: a text, a small model, a learning rate; watch the loss fall, or break it. */
import { Letters } from "./letters.js";
import { countedBits, examples, isHeldOut, MOST, readNames } from "./names.js";
import { field, h, later } from "./shell.js";

const NAMES = "names of functions", SEED = 1, UNIFORM = Math.log2(28);
const RATES = [-3, -2, -1, 0, 1].flatMap((e) => [1, 2, 5].map((n) => +`${n}e${e}`)).concat(100);
export const GOOD = {                        // what each model learns well with
  bigram: { rate: 20, batch: 1024 }, mlp: { rate: 0.2, batch: 32 },
  attention: { rate: 0.2, batch: 32 } };
const MODELS = { bigram: "bigram", mlp: "MLP", attention: "attention" };
const INITS = { scaled: "scaled", none: "none: unscaled" };
const TOP = 12;                              // bits; above, the picture counts in powers of ten
const SMALL = -4, LARGE = 2;                 // powers of ten between which a gradient's bar grows

const number = (n) => n.toLocaleString("en");
const count = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;
const bits = (value) => (Number.isNaN(value) ? "no number"
  : value < 1e3 ? value.toFixed(2) : value < 1e6 ? number(Math.round(value))
    : value.toExponential(1));

/** What was left out of a text, in a sentence; empty if nothing was. */
function dropped({ signs, lines, cut }) {
  const parts = [signs && `${count(signs, "sign")} other than a to z and _`,
    lines && `${count(lines, "line")} without a letter`,
    cut && `what follows the first ${number(MOST)} characters`].filter(Boolean);
  return parts.length ? ` Left out: ${parts.join(", ")}.` : "";
}

/** The curve in a square of 100 by 100: paths for the SVG, and the ticks beside it. Where the loss
    explodes, each tick is ten times the one below it; beyond a million the curve leaves. */
function drawing(points, counted) {
  const seen = points.flatMap(({ train, held }) => [train, held ?? train]).filter(Number.isFinite);
  const most = Math.max(UNIFORM, ...seen), wild = most > TOP, last = points.at(-1).step || 1;
  const scale = wild ? (value) => Math.log10(Math.max(1, value)) : (value) => value;
  const low = wild || Math.min(counted, ...seen) < 2.5 ? 0 : 2;
  const high = Math.min(Math.ceil(scale(most)), wild ? 6 : TOP), every = high - low > 6 ? 2 : 1;
  const up = (value) => (100 * (1 - (scale(value) - low) / (high - low))).toFixed(2);
  const path = (of, d) => `<path class="live-line live-of-${of}" d="${d}"/>`;
  const curve = (of) => path(of, points.filter((p) => Number.isFinite(p[of]))
    .map((p, i) => `${i ? "L" : "M"}${(100 * p.step / last).toFixed(2)} ${up(p[of])}`).join(""));
  const ticks = Array.from({ length: Math.floor((high - low) / every) + 1 },
    (_, i) => (wild ? 10 ** (low + i * every) : low + i * every));
  const tick = (b) => (b < 1e4 ? number(b) : `1e${Math.round(Math.log10(b))}`);
  return { last, ticks: ticks.map((b) => [tick(b), up(b)]), paths: [
    ...ticks.map((b) => path("rule", `M0 ${up(b)}H100`)), path("uniform", `M0 ${up(UNIFORM)}H100`),
    path("counted", `M0 ${up(counted)}H100`), curve("train"), curve("held")].join("") };
}

export default async function trainer(host, { text }) {
  const choice = (label, list, chosen) => field(label, "select", {}, Object.entries(list)
    .map(([value, name]) => h("option", { value, selected: value === chosen }, name)));
  const sizes = (...list) => Object.fromEntries(list.map((n) => [n, number(n)]));
  const [textLabel, source] = choice("Text", { names: NAMES, own: "your own" });
  const [kindLabel, kind] = choice("Model", MODELS);
  const [widthLabel, width] = choice("Width", sizes(8, 16, 32, 64, 128, 256), "64");
  const [initLabel, init] = choice("Initialisation", INITS);
  const [batchLabel, batch] = choice("Batch size", sizes(1, 4, 16, 32, 64, 256, 1024));
  const [rateLabel, rate] = field("Learning rate", "input",
    { type: "range", min: 0, max: RATES.length - 1, step: 1 });
  const rateSays = h("span", { "aria-hidden": "true" });
  const [boxLabel, box] = field("Your names, one a line", "textarea",
    { rows: 5, spellcheck: "false", autocapitalize: "off" });
  const own = h("div", {}, boxLabel, box);
  const says = h("p", { class: "live-count", role: "status" });
  const now = h("p", { class: "live-count" });         // no status: it changes too often for that
  const chart = h("div", { class: "live-chart" }), key = h("p", { class: "live-key" });
  chart.innerHTML = '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"></svg>';
  const svg = chart.firstChild, nothing = "The loss: nothing is trained yet";
  svg.setAttribute("aria-label", nothing);
  const marks = chart.appendChild(h("div", { "aria-hidden": "true" }));
  const names = h("ol", { class: "live-names", "aria-label": "Names that the model writes" });
  const norms = h("ol", { class: "live-bars live-norms",
    "aria-label": "The length of each parameter's gradient" });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const worker = new Worker(new URL("letters-worker.js", import.meta.url), { type: "module" });
  const run = { id: 0, ready: false, stale: false, going: false, stepping: false, state: "",
    warned: false, counted: UNIFORM, namesAt: 0 };
  let library = null;

  const tell = (task, wish) => worker.postMessage({ task, wish });
  const wish = () => ({ rate: RATES[rate.value], batch: +batch.value });

  /** What to do about a loss that climbs. */
  function cure() {
    const good = GOOD[kind.value].rate, at = +rate.value, value = RATES[at];
    const tenth = (times) => RATES[Math.max(0, at - 3 * times)];
    return init.value === "none" && value <= good
      ? `unscaled weights cannot take the learning rate ${value}. Choose scaled ones, or a rate ` +
        `such as ${tenth(2)}`
      : `the learning rate ${value} is too high. Choose a smaller one, such as ` +
        `${value > good ? good : tenth(1)}`;
  }

  /** The text that was chosen; an error says what to do if there is none. */
  async function chosenText() {
    if (source.value === "own") return box.value;
    if (library !== null) return library;
    const reply = await fetch(new URL("names.txt", import.meta.url)).catch(() => null);
    if (!reply?.ok) {
      throw new Error("The page could not fetch the names of functions " +
        `(${reply ? reply.status : "are you offline?"}): paste a text of your own.`);
    }
    return (library = await reply.text());
  }

  /** New weights, and the curve from its start. */
  async function begin() {
    const id = ++run.id;
    going(false);
    run.ready = run.stale = false;
    if (run.state) tell("pause");                      // it has something to pause
    try {
      const found = readNames(await chosenText());
      if (id !== run.id) return;                       // the reader has chosen again meanwhile
      if (!found.names.length) {
        throw new Error("There is no letter from a to z in your text: write or paste names, " +
          "one a line.");
      }
      let learned = found.names.filter((name) => !isHeldOut(name));
      const held = found.names.filter(isHeldOut), none = !learned.length || !held.length;
      if (none) learned = found.names;                 // too few to keep any away
      const model = new Letters(kind.value, { width: +width.value });
      const size = Object.values(model.p).reduce((sum, { v }) => sum + v.length, 0);
      run.counted = countedBits(learned);
      tell("begin", { ...wish(), id, kind: kind.value, width: +width.value, init: init.value,
        seed: SEED, pace: still ? 1000 : 150, data: examples(learned, model.n),
        held: examples(none ? [] : held, model.n) });
      Object.assign(run, { ready: true, warned: false });
      says.textContent = `${count(learned.length, "name")} to learn from, ` +
        (none ? "none held out: too few of them differ. " : `${number(held.length)} held out. `) +
        `The model has ${count(size, "number")}.${dropped(found)}`;
    } catch (error) {
      if (id !== run.id) return;
      if (source.value !== "own") showOwn(true);
      says.textContent = error.message;
      now.textContent = "";
      for (const part of [svg, marks, key, names, norms]) part.replaceChildren();
      svg.setAttribute("aria-label", nothing);
    }
  }

  function going(yes) {
    run.going = yes;
    start.textContent = yes ? "Pause" : "Start";
  }

  function showOwn(yes) {
    source.value = yes ? "own" : "names";
    own.hidden = !yes;
  }

  function showRate() {
    rateSays.textContent = RATES[rate.value];
    rate.setAttribute("aria-valuetext", RATES[rate.value]);
  }

  /** The rate and the batch that suit the model. */
  function suit() {
    const good = GOOD[kind.value];
    rate.value = RATES.indexOf(good.rate);
    batch.value = good.batch;
    width.parentNode.hidden = kind.value === "bigram"; // a table is as wide as its alphabet
    showRate();
  }

  // ---- What the worker reports ----------------------------------------------------------------
  const losses = ({ train, held }) => `training ${bits(train)}` +
    `${held === null ? "" : `, held out ${bits(held)}`} bits a letter`;

  function drawCurve(points) {
    const { paths, ticks, last } = drawing(points, run.counted), end = points.at(-1);
    svg.innerHTML = paths;
    svg.setAttribute("aria-label", `The loss after ${count(end.step, "step")}: ${losses(end)}. ` +
      `One who knows nothing has ${bits(UNIFORM)}, counted pairs ${bits(run.counted)}.`);
    marks.replaceChildren(...ticks.map(([b, y]) =>
      h("span", { class: "live-tick", style: `top:${y}%` }, b)),
    h("span", { class: "live-end" }, count(last, "step")));
    const line = (of, says) => [h("span", {}, h("i", { class: `live-of-${of}` }), ` ${says}`), " "];
    key.replaceChildren("bits a letter: ", ...line("train", "training"),
      ...(end.held === null ? [] : line("held", "held out")),
      ...line("uniform", `knows nothing: ${bits(UNIFORM)}`),
      ...line("counted", `pairs, counted: ${bits(run.counted)}`));
    now.textContent = `Step ${number(end.step)}: ${losses(end)}.`;
  }

  function drawNorms(lengths) {
    norms.replaceChildren(...Object.entries(lengths).map(([name, length]) => {
      const share = (Math.log10(length) - SMALL) / (LARGE - SMALL);
      return h("li", {}, h("code", {}, name), h("span", { class: "live-bar" }, h("i", {
        class: "live-after", style: `width:${Math.max(0, Math.min(1, share || 0)) * 100}%` })),
      h("span", { class: "live-percent" }, !Number.isFinite(length) ? "NaN"
        : length >= 1e-3 && length < 1e4 || !length ? String(+length.toPrecision(2))
          : length.toExponential(0)));
    }));
  }

  function drawNames(samples) {
    names.replaceChildren(...samples.map((name) =>
      h("li", {}, name ? h("code", {}, name) : "(an empty name)")));
    run.namesAt = performance.now();
  }

  /** One sentence for what the reader should know now; while it trains, only if it goes wrong. */
  function tellReader({ state, steps, points }) {
    const end = points.at(-1), from = points[0].train;
    if (state === "broken") {
      return `At step ${number(steps)} the loss was no longer a number: ${cure()}, and press ` +
        "Start: it begins anew.";
    }
    if (state === "resting") return `It rests after ${number(steps)} steps; Start goes on.`;
    if (state === "paused") {
      return run.stepping
        ? `Step ${number(steps)}: on this batch the loss was ${bits(end.train)} bits a letter.`
        : `Paused after ${count(steps, "step")}: ${losses(end)}.`;
    }
    if (state !== "running" || run.warned || end.train < 1.25 * Math.max(from, UNIFORM)) return "";
    run.warned = true;
    return `The loss has climbed from ${bits(from)} to ${bits(end.train)} bits a letter: ` +
      `${cure()}.`;
  }

  worker.onmessage = ({ data }) => {
    if (data.id !== run.id) return;                    // of a training that is over
    run.state = data.state;
    drawCurve(data.points);
    drawNorms(data.norms);
    if (data.state === "broken") {
      names.replaceChildren(h("li", {}, "None: the chances are no longer numbers."));
    } else if (data.state !== "running" || performance.now() > run.namesAt + 1000) {
      drawNames(data.samples);
    }
    if (data.state === "broken" || data.state === "resting") going(false);
    says.textContent = tellReader(data) || says.textContent;
  };
  worker.onerror = (event) => {
    event.preventDefault();
    run.ready = false;
    says.textContent = "Training could not start, for this browser runs no module in a worker: " +
      "try a newer one.";
  };

  // ---- What the reader does ---------------------------------------------------------------------
  /** Is there something to train? What broke begins anew. */
  async function prepared() {
    if (!run.ready || run.stale || run.state === "broken") await begin();
    return run.ready;
  }

  const button = (name, f) => h("button", { type: "button", onclick: f }, name);
  const start = button("Start", async () => {
    if (run.going) {
      going(false);
      return tell("pause");
    }
    if (!await prepared()) return;
    run.stepping = false;
    going(true);
    says.textContent = "It trains.";
    tell("run");
  });
  const step = button("Step", async () => {
    if (!await prepared()) return;
    if (run.going) tell("pause");                      // the batches so far are another point
    going(false);
    run.stepping = true;
    tell("step");
  });
  source.addEventListener("change", () => {
    showOwn(source.value === "own");
    begin();
  });
  const anew = later(() => run.stale && begin());
  box.addEventListener("input", () => { run.stale = true; anew(); });
  kind.addEventListener("change", () => { suit(); begin(); });
  for (const knob of [width, init]) knob.addEventListener("change", begin);
  for (const knob of [rate, batch]) {
    knob.addEventListener("input", () => {
      showRate();
      run.warned = false;
      if (run.ready) tell("set", wish());
    });
  }

  const given = text.trim() && text !== NAMES;
  if (given) box.value = text;
  showOwn(given);
  host.replaceChildren(h("div", { class: "live-knobs" }, h("div", {}, textLabel, source),
    h("div", {}, kindLabel, kind), h("div", {}, widthLabel, width), h("div", {}, initLabel, init),
    h("div", {}, batchLabel, batch),
    h("div", {}, rateLabel, h("div", { class: "live-row" }, rate, rateSays))), own,
  h("div", { class: "live-row" }, start, step, button("Reset", begin)), says, chart, key, now,
  h("div", { class: "live-two" }, h("div", {}, h("p", { class: "live-head" }, "It writes"), names),
    h("div", {}, h("p", { class: "live-head" }, "Length of each gradient, log scale"), norms)));
  suit();
  await begin();
}
