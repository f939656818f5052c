/* What the live parts of a page share: a model, small helpers, and a way to bring your own. */
import { openModel } from "./engine.js";

/** An element: h("button", { class: "x", onclick: f }, "text", child). */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c != null && c !== false));
  return node;
}

let lastId = 0;
/** A labelled field: [label, input]. */
export function field(text, tag, props, ...children) {
  const id = `live-${++lastId}`;
  return [h("label", { for: id }, text), h(tag, { id, ...props }, ...children)];
}

/** A token as the reader should see it: spaces and line ends visible, broken letters as bytes. */
export function shown(tokenizer, id) {
  const bytes = tokenizer.bytes(id), text = new TextDecoder().decode(bytes);
  if (text.includes("\ufffd")) return [...bytes].map((b) => `‹${hex(b)}›`).join("");
  return text.replace(/[ \n\t\r]/g, (c) => ({ " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" })[c]);
}

export const hex = (byte) => byte.toString(16).padStart(2, "0");
export const percent = (p) => (p >= 0.0995 ? `${Math.round(p * 100)}%`
  : p >= 0.0005 ? `${(p * 100).toFixed(1)}%` : "<0.1%");

/** A colour between nothing and full, readable in light and dark. share: 0 to 1. */
export const shade = (share) => `color-mix(in srgb, var(--live-ink) ${Math.round(share * 100)}%,
  transparent)`;

/** The ids of a text as the model reads it: the marker that begins a document, then the text, or
    as much of its end as fits with a few places to spare. */
export function promptIds({ tokenizer, model }, text) {
  const room = Math.max(1, model.cfg.context_length - 9);
  return [tokenizer.endOfText, ...tokenizer.encode(text).slice(-room)];
}

/** What a part says of a text that is too long for it, or nothing. */
export function tooLong({ tokenizer }, text, ids) {
  const n = tokenizer.encode(text).length, kept = ids.length - 1;
  return kept < n ? `Only ${kept} of its ${n} tokens fit. ` : "";
}

/** Call f when the reader pauses, not at each letter. */
export function later(f, ms = 250) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(f, ms); };
}

/** Give a list new items; a button that had the focus hands it to the one in its place. */
export function refill(list, ...items) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...items);
  const buttons = list.querySelectorAll("button");
  if (at >= 0 && buttons.length) buttons[Math.min(at, buttons.length - 1)].focus();
}

/** Numbers as rows of cells: blue below 0, orange above; the strongest cell is full. */
export function strip(rows, label) {
  const canvas = h("canvas", { width: rows[0].length, height: rows.length, role: "img",
    "aria-label": label, style: `height:${rows.length > 1 ? rows.length * 0.8 : 1.6}rem` });
  const pen = canvas.getContext("2d");
  const most = rows.flat().reduce((m, v) => Math.max(m, Math.abs(v)), 1e-9);
  rows.forEach((row, r) => row.forEach((v, i) => {
    pen.fillStyle = `rgb(${v < 0 ? "47 111 196" : "217 119 6"} / ${Math.abs(v) / most})`;
    pen.fillRect(i, r, 1, 1);
  }));
  return canvas;
}

// ---- The models that the live parts run --------------------------------------------------------
const NAMES = ["model.safetensors", "tokenizer.json", "config.json"];

/** A shelf for one model that parts share: the one that the site has in `folder`, or the
    reader's own, kept under `key`. fits(opened) throws if the parts cannot run it. */
export const shelf = ({ folder, name, key = folder, fits = () => null }) => ({ name, key, fits,
  home: new URL(`../${folder}/`, import.meta.url), listeners: new Set(),
  current: null });                          // a promise of { model, tokenizer, name }
export const BOOK = shelf({ folder: "tinytown-8bit", name: "the book's model", key: "model" });

async function fromSite({ home }, name) {
  const reply = await fetch(new URL(name, home)).catch(() => {
    throw new Error(`The page could not fetch ${name}: are you offline?`);
  });
  if (!reply.ok) throw new Error(`The page could not fetch ${name} (${reply.status}).`);
  return reply.arrayBuffer();
}

/** A drawer of the browser, for a reader's model: it stays when the page is left. */
function drawer(mode, use) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("minigpt", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("files");
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const work = opening.result.transaction("files", mode), wish = use(work.objectStore("files"));
      work.oncomplete = () => { opening.result.close(); resolve(wish.result); };
      work.onerror = () => reject(work.error);
    };
  });
}

/** Take one step: a model that cannot is not one to keep. */
function tried(at, opened) {
  const { model, tokenizer } = opened;
  at.fits(opened);
  const logits = model.logits(model.step(tokenizer.endOfText, model.newCache()));
  if (!logits.every(Number.isFinite)) throw new Error("This model's scores are not numbers.");
  return opened;
}

async function first(at) {
  const kept = await drawer("readonly", (files) => files.get(at.key)).catch(() => null);
  if (kept) {
    try {
      return tried(at, { ...await openModel(async (n) => kept.files[n] ?? null), name: kept.name });
    } catch { /* an older page kept something that this one cannot read: fall back */ }
  }
  return { ...await openModel((name) => fromSite(at, name)), name: at.name };
}

/** A shelf's model, opened on first use and once for the page. */
export const currentModel = (at = BOOK) => (at.current ??= first(at).catch((error) => {
  at.current = null;                                 // so that it can be tried again
  throw error;
}));

/** Call f with the model now, and again when the reader brings another. */
export function onModel(f, at = BOOK) {
  at.listeners.add(f);
  return currentModel(at).then(f);
}

async function change(at, opened) {
  at.current = Promise.resolve(opened);
  await Promise.allSettled([...at.listeners].map(async (f) => f(opened)));
}

/** Open files that the reader chose or dropped; keep them for the other pages. */
async function bring(at, files) {
  const weights = files.find((f) => f.name === "model.safetensors")
    ?? files.find((f) => f.name.endsWith(".safetensors"));
  const chosen = {};
  for (const file of files.filter((f) => NAMES.includes(f.name))) {
    chosen[file.name] = await file.arrayBuffer();
  }
  if (weights) chosen["model.safetensors"] = await weights.arrayBuffer();
  const opened = tried(at, await openModel(async (n) => chosen[n] ?? null));
  const folder = weights.webkitRelativePath?.split("/")[0];
  const name = opened.name = folder ? `your model ${folder}` : "your model";
  await drawer("readwrite", (box) => box.put({ name, files: chosen }, at.key)).catch(() => null);
  await change(at, opened);
}

/** Every file of what was dropped: folders are walked through. */
async function dropped(transfer) {
  const walk = async (entry) => {
    if (entry.isFile) return [await new Promise((ok, no) => entry.file(ok, no))];
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((ok, no) => reader.readEntries(ok, no));
      if (!some.length) return found;
      for (const child of some) found.push(...await walk(child));
    }
  };
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  return (await Promise.all(entries.map(walk))).flat();
}

/** The line below a live part: which model runs, and how to run another. */
export function modelLine(host, at = BOOK) {
  const says = h("p", { role: "status", class: "live-model-name" }, "The model is on its way.");
  const home = h("button", { type: "button", hidden: true, onclick: () => attempt(async () => {
    await drawer("readwrite", (box) => box.delete(at.key)).catch(() => null);
    at.current = null;
    await change(at, await currentModel(at));
  }) }, `Back to ${at.name}`);
  const attempt = async (work) => {
    try { await work(); } catch (error) { says.textContent = error.message; }
  };
  const input = (props) => {
    const element = h("input", { type: "file", ...props, hidden: true, onchange: () => {
      const files = [...element.files];
      element.value = "";                            // the same folder may be chosen again
      attempt(() => bring(at, files));
    } });
    return element;
  };
  const folder = input({ webkitdirectory: true }), file = input({ multiple: true });
  const choose = (text, element) =>
    h("button", { type: "button", onclick: () => element.click() }, text);
  host.addEventListener("dragover", (event) => event.preventDefault());
  host.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    attempt(async () => bring(at, await dropped(event.dataTransfer)));
  });
  const show = ({ model, name }) => {
    const n = model.parameters.toLocaleString("en");
    says.textContent = `Runs in your browser: ${name}, ${model.cfg.n_layer} layers, ${n} numbers.`;
    home.hidden = name === at.name;
  };
  onModel(show, at).catch((error) => { says.textContent = error.message; });
  return h("div", { class: "live-model" }, says, h("details", {},
    h("summary", {}, "Run your own model here"),
    h("p", {}, at === BOOK ? ["Trained one with ", h("code", {}, "minigpt train"), "?"]
      : "Taught one to answer?", " Drop its folder here, or choose it: every " +
      `${at === BOOK ? "live part" : "conversation"} of the book then runs it. Nothing is sent ` +
      "anywhere."),
    h("p", { class: "live-row" }, choose("Choose a folder", folder), choose("Choose files", file),
      home, folder, file)));
}
