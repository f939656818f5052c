/* The cache: what each step computes, what it finds again, and what that costs in memory. */
import { field, h, later, modelLine, onModel, promptIds, shown } from "./shell.js";

const STEPS = 24;

export default function cacheView(host, { text }) {
  const [label, box] = field("The text to continue", "textarea",
    { rows: 2, maxlength: 240, spellcheck: "false" });
  const rows = h("ol", { class: "live-steps", "aria-label": "One row a step" });
  const says = h("p", { class: "live-story", role: "status" });
  const next = h("button", { type: "button" }, "Next token");
  const anew = h("button", { type: "button" }, "Start over");
  let opened, ids, cache, totals, over = false;
  box.value = text;

  const best = (x) => {
    const logits = opened.model.logits(x);
    let top = 0;
    logits.forEach((v, id) => { if (v > logits[top]) top = id; });
    return top;
  };

  /** Read ids[from..] into a cache: the last stream, and the milliseconds it took. */
  function read(into, from) {
    const start = performance.now();
    let x;
    for (const id of ids.slice(from)) x = opened.model.step(id, into);
    return { x, ms: performance.now() - start };
  }

  function step() {
    const { model, tokenizer } = opened, known = cache.length, fresh = ids.length - known;
    const kept = read(cache, known), again = read(model.newCache(), 0);
    const vectors = 2 * model.cfg.n_layer;           // a key and a value in each layer
    totals.made += fresh;
    totals.again += ids.length;
    const id = best(kept.x);
    rows.append(h("li", { "aria-label": `${fresh} computed, ${known} found again, chose ` +
      shown(tokenizer, id) },
      h("span", { class: "live-cells" },
        h("i", { class: "live-known", style: `flex:${known}` }),
        h("i", { class: "live-new", style: `flex:${fresh}` }),
        h("i", { style: `flex:${Math.max(0, totals.room - ids.length)}` })),
      h("code", {}, shown(tokenizer, id))));
    const bytes = cache.length * 2 * model.cfg.n_layer * model.d_kv * 4;
    const ms = [kept, again].map((run) => `${run.ms.toFixed(1)} ms`);
    const times = known ? ` Measured: ${ms[0]} with it, ${ms[1]} without.`
      : " The first step reads the whole prompt, with a cache or without.";
    says.textContent = `This step computed ${fresh * vectors} keys and values and found ` +
      `${known * vectors} again; without a cache it would compute ${ids.length * vectors}. ` +
      `So far ${totals.made} tokens went through the stack, without a cache ${totals.again}. ` +
      `The cache holds ${bytes.toLocaleString("en")} bytes.${times}`;
    ids.push(id);
    over = id === tokenizer.endOfText || rows.children.length >= STEPS
      || ids.length >= model.cfg.context_length;
    next.setAttribute("aria-disabled", over);
  }

  function begin() {
    if (!opened) return;
    ids = promptIds(opened, box.value);
    cache = opened.model.newCache();
    totals = { made: 0, again: 0, room: ids.length + STEPS };
    rows.replaceChildren();
    read(opened.model.newCache(), 0);                // the browser gets warm before the clock runs
    step();
  }

  box.addEventListener("input", later(begin));
  next.addEventListener("click", () => over || step());
  anew.addEventListener("click", begin);
  host.replaceChildren(label, box, h("div", { class: "live-row" }, next, anew), says,
    h("p", { class: "live-key", "aria-hidden": "true" },
      h("i", { class: "live-known" }), " found in the cache ", h("i", { class: "live-new" }),
      " computed now; at the right, the token that the step chose"),
    rows, modelLine(host));
  return onModel((model) => { opened = model; begin(); });
}
