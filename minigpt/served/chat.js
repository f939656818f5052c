// Talk with the model of this server. Text goes into the page as text, never as HTML.
const at = (id) => document.getElementById(id);
const KEY = "minigpt-key", MORE = 3;           // MORE: other likely tokens that are shown
const knobs = ["temperature", "top_p", "max_tokens"];
let model = null, turns = [], running = null;

// ---- asking the server --------------------------------------------------------------------------
class Trouble extends Error {
  constructor(message, code) { super(message); this.code = code; }
}

async function call(path, body, signal) {
  const key = sessionStorage.getItem(KEY), headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, signal, cache: "no-store",
      body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) wantKey();
  throw new Trouble(error?.message ?? `The server answered with ${answer.status}.`, error?.code);
}

/** The JSON of each event of a stream. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Trouble("The connection broke off.");
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Trouble(event.error.message, event.error.code);
      yield event;
    }
  }
}

function request(prompt) {
  const asked = { model: model.id, stream: true };
  for (const name of knobs) asked[name] = Number(at(name).value);
  if (!model.chat) return ["v1/completions", { ...asked, prompt, logprobs: MORE }];
  const told = at("system").value.trim();
  const messages = turns.filter((turn) => !turn.leftOut)
    .map(({ role, content }) => ({ role, content }));
  if (told) messages.unshift({ role: "system", content: told });
  return ["v1/chat/completions", { ...asked, messages, logprobs: true, top_logprobs: MORE }];
}

/** Ask; where a conversation is too long, leave out its oldest turns. */
async function ask(prompt, signal) {
  for (;;) {
    try {
      return await call(...request(prompt), signal);
    } catch (error) {
      const read = turns.filter((turn) => !turn.leftOut);
      if (error.code !== "context_length_exceeded" || read.length < 3) throw error;
      for (const turn of read.slice(0, 2)) {
        turn.leftOut = true;
        turn.box.classList.add("left-out");
        turn.box.firstChild.textContent += " (no longer read)";
      }
    }
  }
}

// ---- the tokens of an answer --------------------------------------------------------------------
const bytesOf = (token) => (token.startsWith("bytes:")
  ? token.slice(6).split("\\x").slice(1).map((hex) => parseInt(hex, 16))
  : [...new TextEncoder().encode(token)]);

/** What an event says of its tokens: bytes, log-probability, and the likeliest beside it. */
function tokensOf(logprobs) {
  if (logprobs?.content) {
    return logprobs.content.map(({ bytes, logprob, top_logprobs: top }) => ({ bytes, logprob,
      top: top.map((other) => [other.token, other.logprob]) }));
  }
  return (logprobs?.tokens ?? []).map((token, i) => ({ bytes: bytesOf(token),
    logprob: logprobs.token_logprobs[i], top: Object.entries(logprobs.top_logprobs[i] ?? {}) }));
}

/** Tokens with their texts; bytes that make a letter only together are one piece. */
function piecesOf(tokens) {
  const pieces = [];
  let bytes = [], logprob = 0;
  for (const token of tokens) {
    bytes = [...bytes, ...token.bytes];
    logprob += token.logprob;
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
        .decode(new Uint8Array(bytes));
      pieces.push({ text, logprob, top: token.top });
      [bytes, logprob] = [[], 0];
    } catch { /* half a letter */ }
  }
  return pieces;
}

const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return p >= 99.95 ? "100%" : p >= 0.1 ? `${p.toFixed(1)}%` : "<0.1%";
};

/** An answer whose tokens tell their chances to a pointer and to the arrow keys. */
function showChances(says, text, tokens) {
  let pieces = piecesOf(tokens);
  if (pieces.length && model.chat) pieces[0].text = pieces[0].text.replace(/^ /, "");
  pieces = pieces.filter((piece) => piece.text);
  if (pieces.map((piece) => piece.text).join("") !== text || !text) return;
  const spans = pieces.map(({ text, logprob }) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.className = `p${Math.min(4, Math.floor(5 * Math.exp(logprob)))}`;
    return span;
  });
  let current = -1;
  const tell = (i) => {
    spans[current]?.classList.remove("at");
    current = i;
    spans[i]?.classList.add("at");
    const { text, logprob, top } = pieces[i];
    const others = top.map(([token, p]) => `${JSON.stringify(token)} ${percent(p)}`).join(", ");
    at("chance").textContent = `${JSON.stringify(text)}: ${percent(logprob)}`
      + (others && `; the likeliest there: ${others}`);
  };
  says.replaceChildren(...spans);
  says.tabIndex = 0;
  says.setAttribute("role", "group");
  says.setAttribute("aria-label", "Answer; the arrow keys go through its tokens");
  spans.forEach((span, i) => span.addEventListener("pointerenter", () => tell(i)));
  const leave = () => {
    spans[current]?.classList.remove("at");
    current = -1;
    at("chance").textContent = "";
  };
  says.addEventListener("pointerleave", leave);
  says.addEventListener("blur", leave);
  says.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    tell(Math.max(0, Math.min(spans.length - 1, current + step)));
  });
}

// ---- the conversation ---------------------------------------------------------------------------
function show(role, content) {
  const box = document.createElement("div"), who = document.createElement("div");
  const says = document.createElement("p");
  box.className = `turn ${role}`;
  who.className = "who";
  who.textContent = { user: model.chat ? "You" : "Text", assistant: "MiniGPT" }[role];
  says.className = "says";
  says.textContent = content;
  box.append(who, says);
  at("log").append(box);
  at("log").scrollTop = at("log").scrollHeight;
  return { role, content, box, says };
}

function busy(controller) {
  running = controller;
  at("send").textContent = controller ? "Stop" : "Send";
  at("log").setAttribute("aria-busy", String(Boolean(controller)));
}

async function send() {
  const text = at("text").value;
  if (!text.trim() && model?.chat !== false) return;
  at("trouble").textContent = "";
  if (!model && !await open()) return;
  const controller = new AbortController(), tokens = [];
  busy(controller);
  const asked = show("user", text), said = show("assistant", "");
  turns.push(asked);
  at("text").value = "";
  const mine = turns;
  try {
    for await (const { choices: [choice] } of events(await ask(text, controller.signal))) {
      if (!choice) continue;
      said.content += choice.delta?.content ?? choice.text ?? "";
      said.says.textContent = said.content;
      tokens.push(...tokensOf(choice.logprobs));
      at("log").scrollTop = at("log").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") at("trouble").textContent = error.message;
  }
  if (mine !== turns) return;                       // meanwhile somebody began anew
  showChances(said.says, said.content, tokens);
  if (said.content.trim()) {
    turns.push(said);
  } else {                                          // nothing was said: the turn is taken back
    asked.box.remove();
    said.box.remove();
    turns.pop();
    if (!at("text").value) at("text").value = text;
  }
  busy(null);
}

function anew() {
  running?.abort();
  busy(null);
  turns = [];
  at("log").replaceChildren();
  at("trouble").textContent = at("chance").textContent = "";
  at("text").focus();
}

// ---- the page -----------------------------------------------------------------------------------
function wantKey() {
  at("more").open = true;
  at("key-row").hidden = false;
  at("key").focus();
}

async function open() {
  try {
    model = (await (await call("v1/models")).json()).data[0];
  } catch (error) {
    at("trouble").textContent = error.message;
    return false;
  }
  at("model").textContent = model.id;
  document.title = `MiniGPT ${model.id}`;
  const most = Math.min(model.context_length, model.max_tokens);
  at("max_tokens").max = most;
  at("max_tokens").value = Math.min(200, most);
  if (!model.chat) {
    at("asks").textContent = "A text to go on with";
    at("system-row").hidden = true;
    at("temperature").value = 0.7;
  }
  knobs.forEach(tellKnob);
  return true;
}

function tellKnob(name) {
  document.querySelector(`output[for=${name}]`).textContent = at(name).value;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else send();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
at("anew").addEventListener("click", anew);
at("key").addEventListener("change", async () => {
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("trouble").textContent = "";
  if (await open()) at("text").focus();
});
at("chances").addEventListener("change", () => at("log")
  .classList.toggle("shows", at("chances").checked));
for (const name of knobs) at(name).addEventListener("input", () => tellKnob(name));
knobs.forEach(tellKnob);
open();
