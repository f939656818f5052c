/* Neighbours: whose row of the embedding table points most the same way? */
import { field, h, later, modelLine, onModel, refill, shown } from "./shell.js";

const MOST = 12;

export default function kin(host, { text }) {
  const [label, box] = field("A word", "input", { type: "text", maxlength: 40, autocomplete: "off",
    spellcheck: "false" });
  const says = h("p", { class: "live-count", role: "status" });
  const list = h("ol", { class: "live-bars", "aria-label": "The nearest tokens" });
  let opened, lengths;
  box.value = text;

  const row = (id) => {
    const D = opened.model.cfg.d_model;
    return opened.model.get("embedding.weight").subarray(id * D, id * D + D);
  };
  const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);

  /** The token that is meant: the word with its space if that is one token, else its last token. */
  function meant() {
    const { tokenizer } = opened, ids = tokenizer.encode(` ${box.value.trim()}`);
    return { id: ids.at(-1), whole: ids.length === 1 };
  }

  function draw(chosen) {
    if (!opened) return;
    if (!box.value.trim() && chosen === undefined) {
      says.textContent = "Write a word.";
      return list.replaceChildren();
    }
    const { tokenizer } = opened, n = tokenizer.tokens.length;
    const { id, whole } = chosen === undefined ? meant() : { id: chosen, whole: true };
    const likeness = Float64Array.from({ length: n },
      (_, other) => dot(row(id), row(other)) / (lengths[id] * lengths[other]));
    const best = [...likeness.keys()].filter((other) => other !== id)
      .sort((a, b) => likeness[b] - likeness[a]).slice(0, MOST);
    says.textContent = whole ? `${shown(tokenizer, id)} is one token, number ${id}.`
      : `${box.value.trim()} is more than one token; these are near to its last one, ` +
        `${shown(tokenizer, id)}.`;
    says.textContent += likeness[best[0]] > 0.99 ? " Training hardly ever saw it, if at all: " +
      "it lies where such tokens lie." : " The bars are cosines: 1 is the same direction.";
    refill(list, ...best.map((other) => h("li", {}, h("button", { type: "button",
      onclick: () => { box.value = tokenizer.decode([other]).trim(); draw(other); } },
    h("code", {}, shown(tokenizer, other)),
    h("span", { class: "live-bar" }, h("i", { class: "live-after",
      style: `width:${Math.max(0, likeness[other]) * 100}%` })),
    h("span", { class: "live-percent" }, likeness[other].toFixed(2))))));
  }

  box.addEventListener("input", later(() => draw()));
  host.replaceChildren(label, box, says, list, modelLine(host));
  return onModel((model) => {
    opened = model;
    lengths = Float64Array.from({ length: model.model.cfg.vocab_size },
      (_, id) => Math.hypot(...row(id)) || 1);
    draw();
  });
}
