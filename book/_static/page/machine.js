/* The machine: one token followed from its id to the chances of the next, with true numbers. */
import { softmax } from "./engine.js";
import { field, h, later, modelLine, onModel, percent, promptIds, shown, strip, tooLong }
  from "./shell.js";

const SAYS = {
  "embedding": "The token's row of the embedding table: where its journey begins.",
  "query": "Attention: what this token looks for, a vector for each head.",
  "key": "What it offers to the tokens after it. This is kept in the cache.",
  "value": "What it hands over when it is chosen. This is kept, too.",
  "weights": "How each head shares its look among the tokens so far. Each row sums to 1.",
  "blend": "The values that it read, blended by those weights, head after head.",
  "attention writes": "The blend, mixed by one more matrix: what attention adds to the stream.",
  "stream after attention": "The stream with that added.",
  "hidden units": "The feed-forward network: wide, and most units are nearly off.",
  "mlp writes": "Brought back to the stream's width: what the network adds.",
  "stream after mlp": "The stream with that added: what the next block reads.",
};

export default function machine(host, { text }) {
  const [label, box] = field("Your text; its last token is followed", "textarea",
    { rows: 2, maxlength: 240, spellcheck: "false" });
  const [slideLabel, slide] = field("Station", "input", { type: "range", min: 0, value: 0 });
  const back = h("button", { type: "button" }, "◀ Back");
  const on = h("button", { type: "button" }, "On ▶");
  const map = h("ol", { class: "live-map", "aria-label": "Where on the way" });
  const view = h("div", { class: "live-station", role: "status" });
  let opened, stations = [], place = 0;
  box.value = text;

  /** What the model would say next if it stopped here: the stream, normed and scored. */
  function bet(stream, n = 4) {
    const { model, tokenizer } = opened;
    const probs = softmax(Float64Array.from(model.logits(stream)));
    return [...probs.keys()].sort((a, b) => probs[b] - probs[a]).slice(0, n)
      .map((id) => ({ id, text: shown(tokenizer, id), p: probs[id] }));
  }

  /** Bets as words; those below a thousandth are counted together with all others. */
  function rest(bets) {
    const seen = bets.filter(({ p }) => p >= 0.001);
    const others = Math.max(0, 1 - seen.reduce((sum, { p }) => sum + p, 0));
    return [...seen.map(({ text: t, p }) => `${t} ${percent(p)}`), `others ${percent(others)}`];
  }

  /** The rows of a station's picture: one for each head. */
  function rows({ numbers, n_rows = 1 }) {
    const width = numbers.length / n_rows;
    return Array.from({ length: n_rows }, (_, r) => numbers.slice(r * width, (r + 1) * width));
  }

  function run() {
    const { model, tokenizer } = opened, { cfg } = model, cache = model.newCache();
    const ids = promptIds(opened, box.value), id = ids.at(-1), n = ids.length - 1;
    for (const before of ids.slice(0, -1)) model.step(before, cache);
    stations = [{ at: "in", name: "token id", numbers: [id], shape: "one number",
      says: tooLong(opened, box.value, ids) + `${shown(tokenizer, id)} has the id ${id}. ` + (n
        ? `Before it: the marker that begins a text, and ${n - 1} token${n === 2 ? "" : "s"}.`
        : "It is the marker that begins a text.") }];
    const heads = { query: cfg.n_head, key: cfg.n_kv_head, value: cfg.n_kv_head,
      blend: cfg.n_head };
    const last = model.step(id, cache, (layer, name, numbers) => {
      const flat = name === "weights" ? numbers.flatMap((row) => [...row]) : numbers;
      const n_rows = name === "weights" ? cfg.n_head : heads[name] ?? 1;
      const shape = name === "weights" ? `${cfg.n_head} heads × ${ids.length} tokens`
        : heads[name] ? `${heads[name]} heads × ${model.d_head}` : `${flat.length}`;
      const stream = name === "embedding" || name.startsWith("stream");
      stations.push({ at: name === "embedding" ? "in" : layer, name, shape, says: SAYS[name],
        numbers: [...flat], n_rows, stream: stream ? Float32Array.from(numbers) : null });
    });
    const logits = model.logits(last);
    stations.push(
      { at: "out", name: "last norm", shape: `${last.length}`, numbers: [...last],
        says: "The stream, brought to one size: what is compared with every token's vector." },
      { at: "out", name: "logits", shape: `${logits.length}`, numbers: [...logits],
        says: "One score for every token of the vocabulary; here are those of the best.",
        best: bet(last, 10).map(({ text: t, id: i }) => `${t} ${logits[i].toFixed(1)}`) },
      { at: "out", name: "chances", shape: `${logits.length}`, numbers: [...softmax(logits)],
        says: "Softmax turns the scores into chances that sum to 1. The best, and all others:",
        best: rest(bet(last, 10)) });
    slide.max = stations.length - 1;
  }

  function show(n) {
    place = Math.max(0, Math.min(stations.length - 1, n));
    slide.value = place;
    const s = stations[place], at = s.at === "in" || s.at === "out" ? s.at : `block ${s.at + 1}`;
    slide.setAttribute("aria-valuetext", `${at}, ${s.name}`);
    back.setAttribute("aria-disabled", place === 0);
    on.setAttribute("aria-disabled", place === stations.length - 1);
    [...map.querySelectorAll("button")].forEach((button) => {
      const here = button.dataset.at === String(s.at);
      button.classList.toggle("live-here", here);
      button.setAttribute("aria-current", here ? "step" : "false");
    });
    const { model } = opened;
    const bets = s.stream && rest(bet(model.cfg.norm_place === "pre"
      ? model.norm(s.stream, "norm") : s.stream));
    const largest = s.numbers.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const small = s.numbers.filter((v) => Math.abs(v) < largest / 10).length / s.numbers.length;
    const chip = (t) => h("span", { class: "live-bet" }, t);
    const parts = [
      h("p", {}, h("strong", {}, `${at === "in" || at === "out" ? "" : `${at}: `}${s.name}`),
        h("span", { class: "live-shape" }, s.shape)),
      h("p", {}, s.says),
      s.best && h("p", {}, s.best.map(chip)),
      s.numbers.length > 1 && !s.best && strip(rows(s), `${s.numbers.length} numbers`),
      s.numbers.length > 1 && !s.best && h("p", { class: "live-numbers" }, s.numbers.slice(0, 6)
        .map((v) => v.toFixed(3)).join("  ") + (s.numbers.length > 6 ? "  …" : "") +
        `   largest ${largest.toPrecision(3)}; ${percent(small)} are below a tenth of it`),
      bets && h("p", {}, "If it stopped here, it would bet on: ", bets.map(chip))];
    view.replaceChildren(...parts.filter(Boolean));
  }

  function draw() {
    if (!opened) return;
    run();
    const stops = ["in", ...Array(opened.model.cfg.n_layer).keys(), "out"];
    map.replaceChildren(...stops.map((at) => h("li", {}, h("button", { type: "button",
      "data-at": at, onclick: () => show(stations.findIndex((s) => s.at === at)) },
    at === "in" ? "embedding" : at === "out" ? "chances" : `block ${at + 1}`))));
    show(place);
  }

  box.addEventListener("input", later(draw));
  slide.addEventListener("input", () => show(+slide.value));
  back.addEventListener("click", () => show(place - 1));
  on.addEventListener("click", () => show(place + 1));
  host.replaceChildren(label, box, map,
    h("div", { class: "live-row" }, back, slideLabel, slide, on), view, modelLine(host));
  return onModel((model) => { opened = model; draw(); });
}
