/* Sampling: the true chances of the next token, the rules that reshape them, and every road. */
import { chances, pick } from "./engine.js";
import { field, h, modelLine, onModel, percent, promptIds, shown } from "./shell.js";

const RULES = [            // name, label, least, most, step, the value that changes nothing
  ["temperature", "Temperature", 0, 2, 0.05, 1], ["top_k", "Top-k (0: off)", 0, 50, 1, 0],
  ["top_p", "Top-p", 0.05, 1, 0.05, 1], ["min_p", "Min-p", 0, 0.5, 0.01, 0],
  ["repetition", "Repetition penalty", 1, 2, 0.05, 1],
  ["frequency", "Frequency penalty", 0, 2, 0.05, 0],
  ["presence", "Presence penalty", 0, 2, 0.05, 0]];
const BARS = 10, LONGEST = 160;

export default function sampler(host, { text, simple, auto }) {
  const [label, box] = field("The text to continue", "textarea",
    { rows: 2, maxlength: 400, spellcheck: "false" });
  const written = h("div", { class: "live-text", role: "group",
    "aria-label": "The text so far" });
  const bars = h("ol", { class: "live-bars", "aria-label": "The likeliest next tokens" });
  const says = h("p", { class: "live-count", role: "status" });
  const button = (name, f) => h("button", { type: "button", onclick: f }, name);
  const sliders = h("div", { class: "live-sliders" });
  const settings = Object.fromEntries(RULES.map(([name, , , , , off]) => [name, off]));
  let opened, prompt = [], made = [], cache, logits, timer = null, wait = 0;
  box.value = text;
  if (simple) settings.temperature = 0.8;

  for (const [name, title, min, max, step, off] of RULES) {
    const value = h("output", {}, String(settings[name]));
    const [l, slider] = field(title, "input", { type: "range", min, max, step, value: off });
    slider.addEventListener("input", () => {
      settings[name] = +slider.value;
      value.textContent = slider.value;
      draw();
    });
    sliders.append(h("div", {}, l, slider, value));
  }

  const full = () => made.length >= LONGEST
    || prompt.length + made.length >= opened.model.cfg.context_length;
  const ended = () => made.at(-1) === opened.tokenizer.endOfText;

  /** Read what the cache does not hold yet; the logits are those after the last token. */
  function read() {
    const ids = [...prompt, ...made], start = performance.now(), from = cache.length;
    let x;
    while (cache.length < ids.length) x = opened.model.step(ids[cache.length], cache);
    if (x) logits = opened.model.logits(x);
    wait = (performance.now() - start) / Math.max(1, ids.length - from);
  }

  function begin() {
    if (!opened) return;
    stop();
    prompt = promptIds(opened, box.value);
    made = [];
    cache = opened.model.newCache();
    read();
    draw();
  }

  /** Go back to the token at n and take another road. */
  function rewind(n) {
    stop();
    made = made.slice(0, n);
    cache.length = prompt.length + n - 1;            // the last token is read again
    read();
    draw();
    says.textContent = "Back at this place: choose another token.";
  }

  function take(id) {
    made.push(id);
    if (ended()) stop();
    else if (full()) { stop(); says.textContent = "Enough: start over, or go back a way."; }
    else read();
    draw();
  }

  function probabilities() {
    const past = [...prompt, ...made].filter((id) => id !== opened.tokenizer.endOfText);
    return chances(logits, past, settings);
  }

  function next() {
    if (!opened || ended() || full()) return stop();
    take(pick(probabilities(), 1 - Math.random()));
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    run.textContent = "Let it run";
  }

  function draw() {
    const { tokenizer } = opened;
    written.replaceChildren(h("span", {}, tokenizer.decode(prompt.slice(1))),
      ...made.map((id, n) => {
        const piece = id === tokenizer.endOfText ? "■" : tokenizer.decode([id]);
        return simple ? h("span", { class: "live-made" }, piece)
          : h("button", { type: "button", class: "live-made", onclick: () => rewind(n),
            title: "Go back to here",
            "aria-label": `Go back to before ${piece.trim() || "space"}` }, piece);
      }));
    if (ended()) says.textContent = "The model has ended its text.";
    else if (made.length) {
      says.textContent = `${made.length} tokens written, ${wait.toFixed(1)} ms for the last.`;
    }
    if (simple) return;
    const before = chances(logits, []), after = probabilities();
    const top = [...before.keys()].sort((a, b) => before[b] - before[a]).slice(0, BARS);
    const widest = Math.max(...top.flatMap((id) => [before[id], after[id]]));
    const width = (p) => `width:${p / widest * 100}%`;
    bars.replaceChildren(...(ended() ? [] : top).map((id) => {
      const name = shown(tokenizer, id);
      return h("li", {}, h("button", { type: "button", onclick: () => take(id),
        disabled: full(), "aria-label": `Take ${name}: ${percent(after[id])}, ` +
          `before the rules ${percent(before[id])}` },
      h("code", {}, name),
      h("span", { class: "live-bar" },
        h("i", { class: "live-before", style: width(before[id]) }),
        h("i", { class: "live-after", style: width(after[id]) })),
      h("span", { class: "live-percent" }, after[id] ? percent(after[id]) : "out")));
    }));
    const left = after.reduce((n, p) => n + (p > 0), 0);
    if (!ended()) {
      says.textContent = `${left.toLocaleString("en")} of ${after.length.toLocaleString("en")} ` +
        `tokens can be drawn. ${says.textContent.match(/\d+ tokens written.*/)?.[0] ?? ""}`;
    }
  }

  const run = button("Let it run", () => {
    if (timer) return stop();
    if (opened && (ended() || full())) begin();
    timer = setInterval(next, matchMedia("(prefers-reduced-motion: reduce)").matches ? 250 : 60);
    run.textContent = "Stop";
  });
  box.addEventListener("input", begin);
  host.replaceChildren(label, box, written,
    h("div", { class: "live-row" }, run, simple ? null : button("One token", next),
      button("Start over", begin)), says, ...(simple ? [] : [bars, sliders]), modelLine(host));
  return onModel((model) => {
    opened = model;
    begin();
    if (auto) { run.click(); auto = false; }
  });
}
