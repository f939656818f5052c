/* Attention: a sentence of the reader's, every layer and head, and what each token reads. */
import { softmax } from "./engine.js";
import { field, h, later, modelLine, onModel, percent, promptIds, refill, shade, shown, tooLong }
  from "./shell.js";

const MOST = 40;                                      // tokens, so that a row stays readable

/** Paint one head: rows read, columns are read, the hatched corner is the future. */
export function paint(canvas, weights, cell, marked) {
  const T = weights.length, ink = getComputedStyle(document.documentElement);
  canvas.width = canvas.height = T * cell;
  const pen = canvas.getContext("2d");
  pen.fillStyle = pen.strokeStyle = ink.getPropertyValue("--live-ink");
  weights.forEach((row, t) => row.forEach((w, s) => {
    pen.globalAlpha = w;
    pen.fillRect(s * cell, t * cell, cell, cell);
  }));
  pen.globalAlpha = 0.25;
  pen.beginPath();
  for (let t = 0; t < T; t++) {
    for (let s = t + 1; s < T; s++) {
      pen.moveTo(s * cell, (t + 1) * cell);
      pen.lineTo((s + 1) * cell, t * cell);
    }
  }
  if (cell > 4) pen.stroke();
  pen.globalAlpha = 1;
  if (marked >= 0) pen.strokeRect(0.5, marked * cell + 0.5, T * cell - 1, cell - 1);
}

export default function attention(host, { text }) {
  const [label, box] = field("Your sentence", "textarea",
    { rows: 2, maxlength: 240, spellcheck: "false" });
  const heads = h("div", { class: "live-heads", role: "group", "aria-label": "Layer and head" });
  const words = h("ol", { class: "live-tokens",
    "aria-label": "The tokens; choose one that reads" });
  const grid = h("canvas", { class: "live-grid", role: "img" });
  const says = h("p", { class: "live-story", role: "status" });
  let opened, ids = [], all = [], next = [], rows = [], layer = -1, head = 0, reader = -1;
  box.value = text;

  /** Run the sentence once; rows[layer][head][t] are the weights of token t on tokens 0 to t. */
  function run() {
    const { model } = opened, cache = model.newCache(), { n_layer, n_head } = model.cfg;
    all = promptIds(opened, box.value);
    const ended = reader < 0 || reader === ids.length - 1;
    ids = all.slice(0, MOST);
    next = [];
    rows = Array.from({ length: n_layer }, () => Array.from({ length: n_head }, () => []));
    for (const id of ids) {
      const x = model.step(id, cache, (l, name, weights) => {
        if (name === "weights") weights.forEach((row, n) => rows[l][n].push(row));
      });
      const probs = softmax(Float64Array.from(model.logits(x)));
      next.push(probs.reduce((best, p, i) => (p > best.p ? { i, p } : best), { p: 0 }));
    }
    reader = ended ? ids.length - 1 : Math.min(reader, ids.length - 1);
    if (layer < 0) [layer, head] = farReader();
    layer = Math.min(layer, n_layer - 1);
    head = Math.min(head, n_head - 1);
  }

  /** The head that is surest of a word further back: a good one to begin with. */
  function farReader() {
    const isWord = ids.map((id) => /\p{L}{2}/u.test(shown(opened.tokenizer, id)));
    const far = (l, n) => rows[l][n][reader].reduce((best, w, s) =>
      (s > 0 && s < reader - 2 && isWord[s] ? Math.max(best, w) : best), 0);
    return rows.flatMap((list, l) => list.map((_, n) => [l, n]))
      .reduce((best, at) => (far(...at) > far(...best) ? at : best));
  }

  /** Show what a token reads: the chosen one, or for a moment the one under the pointer. */
  function look(at = reader) {
    const row = rows[layer][head][at], { tokenizer } = opened;
    [...words.querySelectorAll("button")].forEach((button, s) => {
      button.style.background = s <= at ? shade(row[s] * 0.45) : "";
      button.classList.toggle("live-future", s > at);
      button.setAttribute("aria-pressed", String(s === reader));
    });
    paint(grid, rows[layer][head], Math.max(8, Math.floor(480 / ids.length)), at);
    const best = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3)
      .filter((s) => row[s] > 0.01)
      .map((s) => `${shown(tokenizer, ids[s])} (place ${s}) ${percent(row[s])}`);
    says.textContent = `Layer ${layer + 1}, head ${head + 1}: ${shown(tokenizer, ids[at])} ` +
      `(place ${at}) reads ${best.join(", ")}.` +
      (at < ids.length - 1 ? ` The ${ids.length - 1 - at} after it are hidden.` : "") +
      ` All heads together guess ${shown(tokenizer, next[at].i)} next, ` +
      `${percent(next[at].p)}. ` + tooLong(opened, box.value, all) +
      (all.length > MOST ? `Only the first ${MOST} tokens are drawn.` : "");
    grid.setAttribute("aria-label", `The weights of layer ${layer + 1}, head ${head + 1}: ` +
      "each row is a token that reads, each column one that is read; the future is hatched.");
  }

  function choose(l, n) {
    [layer, head] = [l, n];
    [...heads.querySelectorAll("button")].forEach((button) => button.setAttribute("aria-pressed",
      String(button.dataset.at === `${l} ${n}`)));
    look();
  }

  function draw() {
    if (!opened) return;
    run();
    refill(heads, ...rows.flatMap((list, l) => list.map((weights, n) => {
      const small = h("canvas", { "aria-hidden": "true" });
      paint(small, weights, 3, -1);
      return h("button", { type: "button", "data-at": `${l} ${n}`, onclick: () => choose(l, n),
        "aria-label": `Layer ${l + 1}, head ${n + 1}` },
      small, h("small", {}, `${l + 1}.${n + 1}`));
    })));
    heads.style.setProperty("--live-columns", opened.model.cfg.n_head);
    refill(words, ...ids.map((id, t) => h("li", {}, h("button", { type: "button",
      class: "live-token", onclick: () => { reader = t; look(); }, onmouseenter: () => look(t),
      onmouseleave: () => look() },
    shown(opened.tokenizer, id)))));
    choose(layer, head);
  }

  /** The token that reads and the one that is read, under the pointer. */
  function under(event) {
    const at = (offset, size) => Math.max(0, Math.min(ids.length - 1,
      Math.floor(offset / size * ids.length)));
    return [at(event.offsetY, grid.clientHeight), at(event.offsetX, grid.clientWidth)];
  }

  box.addEventListener("input", later(draw));
  grid.addEventListener("mousemove", (event) => {
    if (!opened) return;
    const [t, s] = under(event), name = (n) => shown(opened.tokenizer, ids[n]);
    grid.title = s > t ? `${name(t)} may not read ${name(s)}: it lies in its future`
      : `${name(t)} reads ${name(s)}: ${percent(rows[layer][head][t][s])}`;
  });
  grid.addEventListener("click", (event) => { [reader] = under(event); look(); });
  new MutationObserver(() => opened && draw()).observe(
    document.documentElement, { attributeFilter: ["data-theme"] });
  host.replaceChildren(label, box, words, says,
    h("div", { class: "live-pair" }, heads, grid), modelLine(host));
  return onModel((model) => { opened = model; draw(); });
}
