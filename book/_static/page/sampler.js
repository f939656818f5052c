/* Sampling: the true chances of the next token, the rules that reshape them, and every road. */
import { chances, pick } from "./engine.js";
import { field, h, later, modelLine, onModel, percent, promptIds, shown, tooLong }
  from "./shell.js";

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
  const beginning = h("span"), words = h("span");
  const written = h("div", { class: "live-text", role: "group", "aria-label": "The text so far" },
    beginning, words);
  const bars = h("ol", { class: "live-bars", "aria-label": "The likeliest next tokens" });
  const says = h("p", { class: "live-count", role: "status" });
  const count = h("p", { class: "live-count", "aria-hidden": "true" });    // too quick to be read
  const button = (name, f) => h("button", { type: "button", onclick: f }, name);
  const sliders = h("div", { class: "live-sliders" });
  const settings = Object.fromEntries(RULES.map(([name, , , , , off]) => [name, off]));
  let opened, prompt = [], made = [], cache, logits, timer = null, wait = 0;
  box.value = text;
  if (simple) settings.temperature = 0.8;

  for (const [name, title, min, max, step, off] of RULES) {
    const value = h("span", { "aria-hidden": "true" }, String(settings[name]));
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
    cache.length = Math.min(cache.length, prompt.length + n - 1);     // the last one is read again
    read();
    draw("Back at this place: choose another token.");
  }

  function take(id) {
    made.push(id);
    if (!ended() && prompt.length + made.length < opened.model.cfg.context_length) read();
    const text = opened.tokenizer.decode(made.filter((i) => i !== opened.tokenizer.endOfText));
    if (ended()) { stop(); draw(`The model has ended its text. ${simple ? text : ""}`); }
    else if (full()) { stop(); draw("Enough: start over, or go back a way."); }
    else draw();
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
    run.textContent = simple && made.length ? "Write on" : "Let it run";
  }

  /** The words so far: each a button that goes back to it; only what has changed is made anew. */
  function drawWords() {
    const { tokenizer } = opened, decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const pieces = made.map((id) => (id === tokenizer.endOfText ? "■"
      : decoder.decode(tokenizer.bytes(id), { stream: true })));
    beginning.textContent = tokenizer.decode(prompt.slice(1));
    while (words.children.length > made.length) words.lastChild.remove();
    for (const [n, piece] of pieces.entries()) {
      let word = words.children[n];
      if (!word) {
        word = h("span", { class: "live-made" });
        if (!simple) {
          Object.assign(word, { tabIndex: 0, role: "button", title: "Go back to here",
            onclick: () => rewind(n),
            onkeydown: (event) => { if (event.key === "Enter") rewind(n); } });
        }
        words.append(word);
      }
      if (word.textContent !== piece) word.textContent = piece;
      if (!simple) word.setAttribute("aria-label", `Go back to before ${piece.trim() || "space"}`);
    }
  }

  /** The ten bars stay where they are, so that a click or the focus does not lose them. */
  function drawBars() {
    const before = chances(logits, []), after = probabilities(), { tokenizer } = opened;
    const top = ended() ? [] : [...before.keys()].sort((a, b) => before[b] - before[a])
      .slice(0, BARS);
    const widest = Math.max(...top.flatMap((id) => [before[id], after[id]]));
    while (bars.children.length < BARS) {
      bars.append(h("li", {}, h("button", { type: "button", onclick: (event) => {
        stop();
        take(+event.currentTarget.dataset.id);
      } }, h("code"), h("span", { class: "live-bar" }, h("i", { class: "live-before" }),
        h("i", { class: "live-after" })), h("span", { class: "live-percent" }))));
    }
    [...bars.children].forEach((bar, n) => {
      const id = top[n], button = bar.firstChild;
      bar.hidden = id === undefined;
      if (bar.hidden) return;
      const [name, { children: [was, is] }, share] = button.children;
      name.textContent = shown(tokenizer, id);
      was.style.width = `${before[id] / widest * 100}%`;
      is.style.width = `${after[id] / widest * 100}%`;
      share.textContent = after[id] ? percent(after[id]) : "ruled out";
      button.dataset.id = id;
      button.disabled = full();
      button.setAttribute("aria-label", `Take ${name.textContent}: ${share.textContent}, ` +
        `before the rules ${percent(before[id])}`);
    });
    const left = after.reduce((n, p) => n + (p > 0), 0);
    const number = (n) => n.toLocaleString("en");
    return `${number(left)} of ${number(after.length)} tokens can be drawn.`;
  }

  function draw(message) {
    if (!opened) return;
    drawWords();
    const open = simple ? "" : drawBars();
    if (!timer) {
      says.textContent = tooLong(opened, box.value, prompt) + (message ?? (ended() ? "" : open));
    }
    count.textContent = made.length ? `${made.length} token${made.length === 1 ? "" : "s"} ` +
      `written, ${wait.toFixed(1)} ms for the last.` : "";
  }

  const run = button("Let it run", () => {
    if (timer) return stop();
    if (opened && (ended() || full())) begin();
    timer = setInterval(next, matchMedia("(prefers-reduced-motion: reduce)").matches ? 250 : 60);
    run.textContent = "Stop";
  });
  const anew = later(() => { begin(); if (simple) run.click(); }, simple ? 700 : 250);
  box.addEventListener("input", () => { stop(); anew(); });
  host.replaceChildren(label, box, written,
    h("div", { class: "live-row" }, run, simple ? null : button("One token", next),
      button(simple ? "Write another" : "Start over", () => { begin(); if (simple) run.click(); })),
    says, count, ...(simple ? [] : [bars, sliders]), modelLine(host));
  return onModel((model) => {
    opened = model;
    begin();
    if (auto && !matchMedia("(prefers-reduced-motion: reduce)").matches) run.click();
    auto = false;
  });
}
