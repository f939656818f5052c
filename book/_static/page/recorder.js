/* The flight recorder: drag along a run, and see what the model writes, reads and bets on there. */
import { paint } from "./attention.js";
import { openRecording, read, write } from "./recording.js";
import { field, h, later, percent, promptIds, refill, shade, shown } from "./shell.js";

const BEAT = 1100, BARS = 6, MOST = 24, LONGEST = 60, TEMPERATURE = 0.5;
const number = (n) => n.toLocaleString("en");

/** Where a step stands on an axis of doublings, from 0 to 100; step 0 is its left end. */
export const place = (step, last) => 100 * Math.log1p(step) / Math.log1p(last);

/** The newest row of the log at a step, or the first there is. */
export const rowAt = (rows, step) => rows.findLast((row) => row.step <= step) ?? rows[0];

/** The loss along the run: paths for a square of 100 by 100, and the ticks of both axes. */
export function drawing(rows, last, step) {
  const top = Math.ceil(Math.max(1, ...rows.map((row) => row.loss)));
  const at = ({ step: n, loss }) => `${place(n, last).toFixed(2)} ` +
    (100 * (1 - Math.max(0, loss) / top)).toFixed(2);
  const line = (all) => all.map((row, i) => (i ? "L" : "M") + at(row)).join("");
  const path = (name, d) => `<path class="live-line live-of-${name}" d="${d}"/>`;
  const looks = rows.filter((row) => Number.isFinite(row.validation))
    .map((row) => ({ ...row, loss: row.validation }));
  const every = Math.ceil(top / 7), x = place(step, last).toFixed(2);
  const ups = Array.from({ length: Math.floor(top / every) + 1 }, (_, i) => i * every);
  const alongs = [1, 10, 100, 1e3, 1e4, 1e5].filter((n) => place(n, last) < 68);
  return { paths: [...ups.map((v) => path("rule", `M0 ${(100 * (1 - v / top)).toFixed(2)}H100`)),
    path("train", line(rows)), path("counted", line(looks)), path("held", `M${x} 0V100`)].join(""),
  ups: ups.map((v) => [v, 100 * (1 - v / top)]),
  alongs: [...alongs, last].map((n) => [n, place(n, last)]) };
}

async function fromSite() {
  const reply = await fetch(new URL("recording.safetensors", import.meta.url)).catch(() => {
    throw new Error("the recording could not be fetched: are you offline?");
  });
  if (!reply.ok) throw new Error(`the recording could not be fetched (${reply.status}).`);
  return openRecording(await reply.arrayBuffer());
}

export default async function recorder(host, { text }) {
  const [begins, sentence = begins] = text.split("\n");
  const home = { ...await fromSite(), name: "the book's recording" };
  const run = { of: home, n: 0, seed: 1, timer: null, layer: 0, head: 0 };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const [stepLabel, slider] = field("Snapshot", "input", { type: "range", min: 0, step: 1 });
  const [beginLabel, beginning] = field("A text to continue", "input",
    { type: "text", maxlength: 120, value: begins, spellcheck: "false", autocomplete: "off" });
  const [sentenceLabel, box] = field("A sentence to read", "input",
    { type: "text", maxlength: 120, value: sentence, spellcheck: "false", autocomplete: "off" });
  const says = h("p", { class: "live-count", role: "status" });
  const chart = h("div", { class: "live-chart" });
  chart.innerHTML = '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"></svg>';
  const svg = chart.firstChild, marks = chart.appendChild(h("div", { "aria-hidden": "true" }));
  const key = h("p", { class: "live-key" },
    h("span", {}, h("i", { class: "live-of-train" }), " loss of a batch, nats a token"), " ",
    h("span", {}, h("i", { class: "live-of-counted" }), " on held-out text"), " ",
    h("span", {}, h("i", { class: "live-of-held" }), " you are here"));
  const prompt = h("span"), made = h("span", { class: "live-made" });
  const story = h("p", { class: "live-text recorder-story" }, prompt, made);
  const heads = h("div", { class: "live-heads", role: "group", "aria-label": "Layer and head" });
  const grid = h("canvas", { class: "live-grid", role: "img" });
  const words = h("ol", { class: "live-tokens", "aria-label": "The tokens of the sentence" });
  const bars = h("ol", { class: "live-bars", "aria-label": "The likeliest next tokens" });
  const note = h("p", { class: "live-count" });

  const last = () => run.of.steps.at(-1), step = () => run.of.steps[run.n];
  const snapshot = () => run.of.at(run.n);

  function drawCurve() {
    const { paths, ups, alongs } = drawing(run.of.rows, Math.max(1, last()), step());
    svg.innerHTML = paths;
    marks.replaceChildren(
      ...ups.map(([v, y]) => h("span", { class: "live-tick", style: `top:${y}%` }, String(v))),
      ...alongs.map(([n, x]) => h("span", { class: "recorder-along", style: `left:${x}%` },
        n === last() ? `${number(n)} steps` : number(n))));
    const { rows } = run.of, row = rows.length && rowAt(rows, step());
    svg.setAttribute("aria-label", "The loss along the run, steps on a logarithmic axis: " + (row
      ? `${rows[0].loss.toFixed(2)} at first, ${row.loss.toFixed(2)} at step ${number(step())}, ` +
        `${rows.at(-1).loss.toFixed(2)} at the end` : "nothing is logged"));
    slider.max = run.of.steps.length - 1;
    slider.value = run.n;
    slider.setAttribute("aria-valuetext", `step ${number(step())} of ${number(last())}`);
  }

  function drawStory() {
    const opened = snapshot(), ids = promptIds(opened, beginning.value);
    prompt.textContent = opened.tokenizer.decode(ids.slice(1));
    made.textContent = opened.tokenizer.decode(
      write(opened, ids, { seed: run.seed, temperature: TEMPERATURE, most: LONGEST }));
  }

  function choose(layer, head, rows, ids) {
    Object.assign(run, { layer, head });
    [...heads.querySelectorAll("button")].forEach((button) => button.setAttribute("aria-pressed",
      String(button.dataset.at === `${layer} ${head}`)));
    paint(grid, rows[layer][head], Math.max(8, Math.floor(300 / ids.length)), ids.length - 1);
    const row = rows[layer][head].at(-1), { tokenizer } = run.of;
    words.replaceChildren(...ids.map((id, s) => h("li", {}, h("span", { class: "live-token",
      style: `background:${shade(row[s] * 0.45)}` }, shown(tokenizer, id)))));
    const best = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 2)
      .map((s) => `${shown(tokenizer, ids[s])} (place ${s}) ${percent(row[s])}`);
    note.textContent = `Layer ${layer + 1}, head ${head + 1}: the last token, ` +
      `${shown(tokenizer, ids.at(-1))}, reads ${best.join(", ")}.`;
    grid.setAttribute("aria-label", `The weights of layer ${layer + 1}, head ${head + 1} at step ` +
      `${number(step())}: each row is a token that reads, each column one that is read`);
  }

  function drawReading() {
    const opened = snapshot(), { tokenizer, model } = opened;
    const ids = promptIds(opened, box.value).slice(0, MOST), { rows, probs } = read(model, ids);
    const [layer, head] = [Math.min(run.layer, rows.length - 1),
      Math.min(run.head, model.cfg.n_head - 1)];
    refill(heads, ...rows.flatMap((list, l) => list.map((weights, n) => {
      const small = h("canvas", { "aria-hidden": "true" });
      paint(small, weights, 3, -1);
      return h("button", { type: "button", "data-at": `${l} ${n}`, "aria-label":
        `Layer ${l + 1}, head ${n + 1}: ${l + 1}.${n + 1}`, onclick: () => choose(l, n, rows, ids) },
      small, h("small", {}, `${l + 1}.${n + 1}`));
    })));
    heads.style.setProperty("--live-columns", Math.min(4, model.cfg.n_head));
    choose(layer, head, rows, ids);
    const top = [...probs.keys()].sort((a, b) => probs[b] - probs[a]).slice(0, BARS);
    bars.replaceChildren(...top.map((id) => h("li", {}, h("code", {}, shown(tokenizer, id)),
      h("span", { class: "live-bar" }, h("i", { class: "live-after",
        style: `width:${(100 * probs[id]).toFixed(1)}%` })),
      h("span", { class: "live-percent" }, percent(probs[id])))));
  }

  function tell() {
    const row = run.of.rows.length && rowAt(run.of.rows, step());
    says.textContent = (step() === 0 ? "Before the first step" : `After step ${number(step())} of ` +
      number(last())) + (row ? `: loss ${row.loss.toFixed(2)}.` : ".");
  }

  function goTo(n, quietly = false) {
    run.n = Math.max(0, Math.min(run.of.steps.length - 1, n));
    drawCurve();
    drawStory();
    drawReading();
    if (!quietly) tell();
  }

  const GO = still ? "One snapshot on" : "Play";
  const play = h("button", { type: "button", onclick: () => {
    if (run.timer) { pause(); return tell(); }
    if (run.n === run.of.steps.length - 1) goTo(0, true);
    else if (still) return goTo(run.n + 1);            // nothing moves by itself
    if (still) return tell();
    says.textContent = "It learns.";
    play.textContent = "Pause";
    run.timer = setInterval(() => {
      goTo(run.n + 1, true);
      if (run.n === run.of.steps.length - 1) { pause(); tell(); }
    }, BEAT);
  } }, GO);

  function pause() {
    clearInterval(run.timer);
    run.timer = null;
    play.textContent = GO;
  }

  slider.addEventListener("input", () => { pause(); goTo(+slider.value); });
  beginning.addEventListener("input", later(drawStory));
  box.addEventListener("input", later(drawReading));
  new MutationObserver(drawReading).observe(document.documentElement,
    { attributeFilter: ["data-theme"] });
  const another = h("button", { type: "button", onclick: () => { run.seed++; drawStory(); } },
    "Another seed");

  // ---- Which recording plays, and how to bring another
  const plays = h("p", { role: "status", class: "live-model-name" });
  const back = h("button", { type: "button", hidden: true, onclick: () => show(home) },
    `Back to ${home.name}`);
  const file = h("input", { type: "file", accept: ".safetensors", hidden: true, onchange: () => {
    const [one] = file.files;
    file.value = "";                                   // the same file may be chosen again
    if (one) bring(one);
  } });

  function show(of) {
    const before = run.of;
    pause();
    try {
      Object.assign(run, { of, n: 0 });
      goTo(0);
    } catch (error) {                                  // what cannot be run is not kept
      run.of = before;
      goTo(0);
      throw error;
    }
    plays.textContent = `Plays in your browser: ${of.name}, ${of.steps.length} snapshots of ` +
      `${number(last())} steps, ${number(of.parameters)} numbers each.`;
    back.hidden = of === home;
  }

  async function bring(one) {
    try {
      const bytes = await one.arrayBuffer().catch(() => {       // a folder, say
        throw new Error("This cannot be read: choose the file recording.safetensors of a run.");
      });
      show({ ...openRecording(bytes), name: `your ${one.name}` });
    } catch (error) {
      plays.textContent = error.message;
    }
  }

  host.addEventListener("dragover", (event) => event.preventDefault());
  host.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    const one = event.dataTransfer.files[0];
    if (one) bring(one);
  });
  host.replaceChildren(h("div", { class: "live-row recorder-row" }, play, stepLabel, slider), says,
    h("div", { class: "live-two" }, h("div", {}, chart, key),
      h("div", {}, beginLabel, beginning, story, another)),
    h("div", {}, sentenceLabel, box), words,
    h("div", { class: "live-two" },
      h("div", {}, h("p", { class: "live-head" }, "What comes next?"), bars),
      h("div", {}, h("p", { class: "live-head" }, "What each token reads"),
        h("div", { class: "live-pair" }, heads, grid))), note,
    h("div", { class: "live-model" }, plays, h("details", {},
      h("summary", {}, "Play your own run here"),
      h("p", {}, "Trained with ", h("code", {}, "minigpt train --record"), "? Drop the run's ",
        h("code", {}, "recording.safetensors"), " here, or choose it. Nothing is sent anywhere."),
      h("p", { class: "live-row" }, h("button", { type: "button", onclick: () => file.click() },
        "Choose a recording"), back, file))));
  show(home);
}
