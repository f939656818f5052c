/* The tokenizer: type, and see the tokens, their ids and bytes, and the merges that made them. */
import { field, h, hex, later, modelLine, onModel, refill, shown } from "./shell.js";

export default function tokens(host, { text }) {
  const [label, box] = field("Your text", "textarea",
    { rows: 2, maxlength: 400, spellcheck: "false" });
  const count = h("p", { class: "live-count", role: "status" });
  const list = h("ol", { class: "live-tokens", "aria-label": "The tokens, in order" });
  const story = h("div", { class: "live-story" });
  let tokenizer, pieces = [], chosen = -1;
  box.value = text;

  /** The stages of one chunk: a row for each merge, the new part marked. */
  function stages(chunk) {
    let before = null;
    return [...tokenizer.stages(chunk)].map((parts) => {
      const fresh = before ? parts.findIndex((p, i) => p !== before[i]) : -1;
      before = parts;
      const says = fresh < 0 ? "Single bytes" : `Merge ${tokenizer.ranks.get(parts[fresh]) - 255}`;
      return h("li", {}, h("span", { class: "live-merge" }, says), parts.map((part, i) =>
        h("code", { class: i === fresh ? "live-part live-fresh" : "live-part" },
          shown(tokenizer, tokenizer.ranks.get(part)))));
    });
  }

  function explain() {
    const piece = pieces[chosen];
    story.replaceChildren();
    if (!piece) return;
    const bytes = [...tokenizer.bytes(piece.id)];
    story.append(
      h("p", {}, h("strong", {}, shown(tokenizer, piece.id)), ` has the id ${piece.id}. `,
        bytes.length === 1 ? "Its byte is " : `Its ${bytes.length} bytes are `,
        h("code", {}, bytes.map(hex).join(" ")), ", written in base sixteen. It stands in the " +
        "piece ", h("code", {}, JSON.stringify(piece.chunk)), ", which grew like this:"),
      h("ol", { class: "live-stages" }, stages(piece.chunk)));
  }

  function choose(n) {
    chosen = n;
    [...list.querySelectorAll("button")].forEach((b, i) =>
      b.setAttribute("aria-pressed", String(i === n)));
    explain();
  }

  function draw() {
    if (!tokenizer) return;
    pieces = tokenizer.chunks(box.value).flatMap((chunk) =>
      tokenizer.encode(chunk).map((id) => ({ id, chunk })));
    const n = { letters: [...box.value].length, bytes: new TextEncoder().encode(box.value).length };
    const s = (k, word) => `${k} ${word}${k === 1 ? "" : "s"}`;
    count.textContent =
      `${s(n.letters, "character")}, ${s(n.bytes, "byte")}, ${s(pieces.length, "token")}.`;
    refill(list, ...pieces.map(({ id }, i) => h("li", {},
      h("button", { type: "button", class: `live-token live-hue-${i % 5}`,
        onclick: () => choose(i) }, shown(tokenizer, id), h("small", {}, String(id))))));
    if (chosen < 0) {                                // begin with the longest piece
      chosen = pieces.reduce((b, p, i) => (p.chunk.length > pieces[b].chunk.length ? i : b), 0);
    }
    choose(Math.min(chosen, Math.max(0, pieces.length - 1)));
  }

  box.addEventListener("input", later(draw, 120));
  host.replaceChildren(label, box, count, list, story, modelLine(host));
  return onModel((opened) => { tokenizer = opened.tokenizer; draw(); });
}
