/* Rounds the model's weights and reads with them, in a thread of its own; quantize.js asks. */
import { readSafetensors, Tokenizer } from "./engine.js";
import { matrices, Reader, rounded } from "./rounding.js";

const N_TOKENS = 60, BINS = 60, RULERS = 8, EVERY = 12;   // tokens of a story; of a report
const MODEL = new URL("../tinytown/", import.meta.url);   // the float32 file, to round from
let shop = null, newest = 0;

async function fetched(url, how) {
  const name = url.pathname.split("/").at(-1), reply = await fetch(url).catch(() => {
    throw new Error(`${name} could not be fetched: are you offline?`);
  });
  if (!reply.ok) throw new Error(`${name} could not be fetched (${reply.status}).`);
  return reply[how]();
}

async function open() {
  const file = (name, how = "json") => fetched(new URL(name, MODEL), how);
  const [weights, spec, config, told] = await Promise.all([file("model.safetensors", "arrayBuffer"),
    file("tokenizer.json"), file("config.json"),
    fetched(new URL("quantize.json", import.meta.url), "json")]);
  const exact = readSafetensors(weights).tensors, now = new Map(exact);
  const model = new Reader(config, now), tokenizer = new Tokenizer(spec);
  const texts = told.texts.map((text) => tokenizer.encode(text));
  shop = { model, tokenizer, exact, now, texts, all: matrices(model), grids: new Map(), state: "",
    losses: new Map() };
  const size = [...exact.values()].reduce((sum, t) => sum + t.length, 0);
  const float32 = told.float32.reduce((a, b) => a + b) / texts.length;
  return { floor: told.floor, float32, each: told.float32, size,
    tokens: texts.reduce((sum, ids) => sum + ids.length + 1, 0), documents: texts.length,
    matrices: shop.all.map(([name]) => name) };
}

/** Put the weights that the reader wants into the model. */
function round({ bits, reach, embedding }, setting) {
  if (shop.state === setting) return;
  shop.state = setting;
  shop.grids.clear();
  for (const [name, columns] of shop.all) {
    const keep = bits === 32 || (!embedding && name.startsWith("embedding"));
    const grid = keep ? null : rounded(shop.exact.get(name), columns, bits, reach);
    if (grid) shop.grids.set(name, grid);
    shop.now.set(name, grid ? grid.values : shop.exact.get(name));
  }
}

/** The bytes of all weights, and the bits of one that was rounded, with its share of a scale. */
function cost({ bits }) {
  let bytes = 0, weights = 0, spent = 0;
  for (const [name, exact] of shop.exact) {
    const grid = shop.grids.get(name), used = grid
      ? bits * exact.length + 16 * grid.scales.length : 32 * exact.length;
    bytes += used / 8;
    if (grid) [weights, spent] = [weights + exact.length, spent + used];
  }
  return { bytes, real: weights ? spent / weights : 32 };
}

/** One matrix: how many weights in each bin, some of its scales, and what rounding does to it. */
function portrait(name) {
  const W = shop.exact.get(name), grid = shop.grids.get(name), bins = new Array(BINS).fill(0);
  const reach = W.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-9);
  for (const v of W) bins[Math.min(BINS - 1, Math.floor((v / reach + 1) * BINS / 2))]++;
  if (!grid) return { name, reach, bins, scales: [], count: 0, zeros: 0, error: 0 };
  const scales = Float64Array.from(grid.scales).sort(), n = Math.min(RULERS, scales.length);
  const some = Array.from({ length: n }, (_, i) =>
    scales[n > 1 ? Math.round(i * (scales.length - 1) / (n - 1)) : 0]);
  let wrong = 0, all = 0;
  W.forEach((v, i) => { wrong += (grid.values[i] - v) ** 2; all += v * v; });
  return { name, reach, bins, scales: some, middle: scales[scales.length >> 1],
    count: scales.length, zeros: grid.zeros / W.length, error: Math.sqrt(wrong / all) };
}

/** Let the page speak; false if it has wished for something else. */
const still = (id) => new Promise((go) => { setTimeout(() => go(id === newest)); });

async function story(id, { prompt }) {
  const { model, tokenizer } = shop, cache = model.newCache(), made = [];
  const room = model.cfg.context_length - N_TOKENS - 1;
  let x;
  for (const token of [tokenizer.endOfText, ...tokenizer.encode(prompt).slice(-room)]) {
    x = model.step(token, cache);
  }
  for (;;) {
    const best = model.logits(x).reduce((top, v, i, all) => (v > all[top] ? i : top), 0);
    if (best !== tokenizer.endOfText) made.push(best);
    const end = best === tokenizer.endOfText || made.length === N_TOKENS;
    if (end || made.length % EVERY === 0) {
      postMessage({ id, kind: "story", text: tokenizer.decode(made), end });
      if (end || !await still(id)) return;
    }
    x = model.step(best, cache);
  }
}

async function loss(id, setting) {
  const { model, tokenizer, texts, losses } = shop;
  for (let n = 0, sum = 0; !losses.has(setting); n++) {
    sum += model.bits(texts[n], tokenizer.endOfText);
    if (n + 1 === texts.length) losses.set(setting, sum / texts.length);
    else postMessage({ id, kind: "reading", done: n + 1, sum });
    if (!await still(id)) return;
  }
  postMessage({ id, kind: "loss", bits: losses.get(setting) });
}

const TASKS = {
  async open(id) {
    postMessage({ id, kind: "open", ...await open() });
  },
  async show(id, wish) {
    newest = id;
    const setting = wish.bits === 32 ? "32" : `${wish.bits} ${wish.reach} ${wish.embedding}`;
    if (!await still(id)) return;                      // a slider that moves wishes many times
    round(wish, setting);
    postMessage({ id, kind: "weights", cost: cost(wish), portrait: portrait(wish.matrix) });
    if (!await still(id)) return;
    await story(id, wish);
    if (id === newest) await loss(id, setting);
  },
};
onmessage = ({ data: { task, id, wish } }) => TASKS[task](id, wish)
  .catch((error) => postMessage({ id, kind: "error", message: error.message }));
