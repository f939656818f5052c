/* A conversation with the book's chat model: turns, answers as they are written, what it reads. */
import { chatIds, fitting, isEmpty, markers, Reader, replyText, rowIds } from "./conversation.js";
import { field, h, modelLine, onModel, refill, shelf, shown } from "./shell.js";

export const at = shelf({ folder: "chat", name: "the book's chat model",
  fits: ({ tokenizer }) => markers(tokenizer) });
const MOST = 220;                                    // tokens of an answer; a story has about 180
const WHO = { user: "You", assistant: "MiniGPT" };
const LEANS = /^And /;                               // a question that needs one before it

const pause = (ms) => new Promise((go) => { setTimeout(go, ms); });

/** A turn as it stands in the log. */
const turn = (role, ...says) => h("div", { class: `chat-turn chat-${role}` },
  h("span", { class: "chat-who" }, `${WHO[role]}: `), h("p", { class: "chat-says" }, says));

export default function chat(host, { text }) {
  const questions = text.split("\n").filter((question) => !isEmpty(question));
  const told = [...host.querySelectorAll(".chat-turn")].map((node) => ({
    role: node.classList.contains("chat-user") ? "user" : "assistant",
    content: node.querySelector(".chat-says").textContent }));       // what the picture shows
  const log = h("div", { class: "chat-log", role: "log", tabindex: 0,
    "aria-label": "The conversation" });
  const asks = h("ul", { class: "chat-asks", "aria-label": "Questions to ask" });
  const [label, box] = field("Your question", "input", { type: "text", maxlength: 400,
    autocomplete: "off", enterkeyhint: "send" });
  const send = h("button", { type: "submit" }, "Ask");
  const says = h("p", { class: "live-count", role: "status" });
  const count = h("p", { class: "live-count", "aria-hidden": "true" });   // too quick to be read
  const row = h("ol", { class: "live-tokens", "aria-label": "The tokens, in order" });
  const rowSays = h("p", { class: "live-count" });
  const reads = h("details", { class: "chat-reads", ontoggle: () => drawRow() },
    h("summary", {}, "What it reads"), rowSays, row);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let opened, reader, messages = [], made = [], run = 0, busy = false, stopping = false;

  const kept = () => (messages.length ? fitting(opened, messages, MOST) : []);

  /** Put something at the end of the log, and go there. */
  function show(node) {
    log.append(node);
    log.scrollTop = log.scrollHeight;
    return node;
  }

  function add(role, content) {
    messages.push({ role, content, node: show(turn(role, content)) });
  }

  /** The tokens of what is not forgotten; while it answers, those of the answer so far. */
  function drawRow() {
    if (!opened || !reads.open) return;
    const { tokenizer, model } = opened, inside = kept();
    const ids = [...inside.length ? rowIds(tokenizer, inside) : [tokenizer.endOfText],
      ...busy ? [markers(tokenizer).assistant, ...made] : []];
    rowSays.textContent = `${ids.length} of ${model.cfg.context_length} tokens. The markers with ` +
      "a thick frame say who speaks and where a turn ends; no text that you type makes one.";
    refill(row, ...ids.map((id) => h("li", {}, h("span",
      { class: `live-token${tokenizer.special.has(id) ? " chat-marker" : ""}` },
      shown(tokenizer, id)))));
  }

  /** Buttons with the questions that nobody has asked yet. */
  function drawAsks() {
    const asked = new Set(messages.map(({ content }) => content));
    const here = asks.contains(document.activeElement);
    refill(asks, ...questions.filter((q) => !asked.has(q) && (messages.length || !LEANS.test(q)))
      .map((question) => h("li", {}, h("button", { type: "button", "aria-disabled": busy,
        onclick: () => ask(question) }, question))));
    if (here && !asks.children.length) box.focus();
  }

  function draw() {
    send.textContent = busy ? "Stop" : "Ask";
    send.type = busy ? "button" : "submit";
    drawAsks();
    drawRow();
  }

  /** Which turns does it still read? Those that slid out of its context are pale. */
  function slide() {
    const inside = new Set(kept()), out = messages.filter((message) => !inside.has(message));
    for (const { node } of out) node.classList.add("chat-forgotten");
    says.textContent = out.length ? `The first ${out.length} turns no longer fit into its ` +
      `${opened.model.cfg.context_length} tokens: it has forgotten them.` : "";
  }

  function anew() {
    run++;
    [messages, made, busy] = [[], [], false];
    reader = new Reader(opened);
    log.replaceChildren();
    says.textContent = count.textContent = "";
    draw();
  }

  /** Write the answer to a prompt into a place of the log; what it said, or null if the
      conversation began anew meanwhile. */
  async function answer(prompt, place) {
    const mine = run, { tokenizer, model } = opened, start = performance.now();
    let breath = start, last;
    for (const id of reader.reply(prompt, MOST)) {
      last = id;
      if (id !== null && !reader.stops.has(id)) {
        made.push(id);
        const near = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
        if (!still) place.textContent = replyText(tokenizer, made).replace(/\ufffd+$/, "");
        if (near) log.scrollTop = log.scrollHeight;      // who reads further up stays there
        drawRow();
      }
      const spent = performance.now() - breath, wrote = id !== null && !still;
      if (wrote || spent > 12) {                       // an eye follows, and the browser breathes
        await pause(wrote ? Math.max(0, 16 - spent) : 0);
        breath = performance.now();
      }
      if (mine !== run) return null;
      if (stopping) break;
    }
    if (!stopping && !reader.stops.has(last)) {
      const full = `all ${model.cfg.context_length} places are taken`;
      says.textContent = `${says.textContent} It breaks off: ${made.length < MOST ? full
        : `${MOST} tokens are the most`}.`.trim();
    }
    count.textContent = `It read ${prompt.length} tokens and wrote ${made.length}, in ` +
      `${((performance.now() - start) / 1000).toFixed(1)} s.`;
    return replyText(tokenizer, made);
  }

  async function ask(question) {
    if (!opened || busy || isEmpty(question)) return;
    add("user", question);
    const { tokenizer, model } = opened, prompt = chatIds(tokenizer, kept());
    if (prompt.length > model.cfg.context_length) {
      messages.pop().node.remove();
      says.textContent = `This question has ${tokenizer.encode(question).length} tokens, more ` +
        "than it can read: make it shorter.";
      return;
    }
    if (box.value === question) box.value = "";
    [busy, stopping, made] = [true, false, []];
    slide();
    draw();
    const place = h("span", {}, "…"), growing = show(turn("assistant", place));
    growing.setAttribute("aria-hidden", "true");       // it is read out once, when it is whole
    let said = "", trouble = "";
    try { said = await answer(prompt, place); } catch (error) { trouble = error.message; }
    if (said === null) return;
    growing.remove();
    busy = false;
    if (isEmpty(said)) {
      messages.pop();                                  // the question waits for another answer
      show(turn("assistant", stopping ? "(stopped)" : "(It says nothing.)"));
    } else add("assistant", said);
    if (stopping || trouble) says.textContent = trouble || "You stopped it.";
    draw();
  }

  const stop = () => { stopping = busy; };
  send.addEventListener("click", stop);
  const form = h("form", { class: "chat-form", onsubmit: (event) => {
    event.preventDefault();
    ask(box.value);
  } }, label, h("div", { class: "chat-line" }, box, send));
  host.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  host.replaceChildren(log, asks, form, says, h("div", { class: "live-row" },
    h("button", { type: "button", onclick: anew }, "Start anew"), count), reads,
  modelLine(host, at));
  return onModel((model) => {
    const first = !opened && model.name === at.name;
    opened = model;
    anew();
    if (first) for (const { role, content } of told) add(role, content);
    draw();
  }, at);
}
