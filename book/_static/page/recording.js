/* A recording: the snapshots of one run in one file, as `minigpt train --record` writes it. */
import { chances, GPT, pick, readSafetensors, softmax, Tokenizer } from "./engine.js";
import { Dice } from "./letters.js";

const OPEN = 4;                                      // snapshots that stay unpacked
const WHAT = "choose a recording.safetensors that minigpt train --record wrote.";
const isRow = (row) => Number.isInteger(row?.step) && Number.isFinite(row.loss);

/** What stands in an error is for the reader; of a file's other faults one sentence is enough. */
function said(work) {
  try { return work(); } catch (error) {
    if (error.constructor === Error) throw error;
    throw new Error(`This file is damaged, or no recording: ${WHAT}`);
  }
}

/** { tokenizer, steps, rows, config, parameters, at }; at(n) is the n-th snapshot, ready to run. */
export const openRecording = (buffer) => said(() => {
  const held = new Set();
  const { about } = readSafetensors(buffer, (name) => { held.add(name.split(".")[0]); });
  if (about.format !== "minigpt recording") throw new Error(`This is no recording: ${WHAT}`);
  if (about.version !== 1) {
    throw new Error(`This is a recording of version ${about.version}; the page plays version 1.`);
  }
  const { steps, config } = about, tokenizer = new Tokenizer(about.tokenizer);
  const name = (n) => `step-${String(steps[n]).padStart(6, "0")}`;
  if (!steps.length || steps.length !== held.size || steps.some((s, n) => !held.has(name(n))
      || !(Number.isInteger(s) && s > (n ? steps[n - 1] : -1)))) {
    throw new Error("The recording lacks snapshots that it names: copy the file again.");
  }
  if (tokenizer.size > config.vocab_size) {
    throw new Error(`The tokenizer has ${tokenizer.size} ids, the model ${config.vocab_size}.`);
  }
  const shelf = new Map();
  const at = (n) => said(() => {
    if (!shelf.has(n)) {
      const start = `${name(n)}.`;
      const { tensors } = readSafetensors(buffer, (full) => full.startsWith(start));
      const weights = [...tensors].map(([full, t]) => [full.slice(start.length), t]);
      if (!weights.every(([, t]) => t.every(Number.isFinite))) {
        throw new Error(`The weights of step ${steps[n]} are not numbers: copy the file again.`);
      }
      shelf.set(n, { model: new GPT(config, new Map(weights)), tokenizer });
      if (shelf.size > OPEN) shelf.delete(shelf.keys().next().value);
    }
    return shelf.get(n);
  });
  const { parameters } = at(steps.length - 1).model;  // a file that cannot run is refused at once
  return { tokenizer, steps, config, parameters, at, rows: about.log.filter(isRow) };
});

/** What one model makes of ids: rows[layer][head][t], and the chances (V,) of what comes next. */
export function read(model, ids) {
  const { n_layer, n_head } = model.cfg, cache = model.newCache();
  const rows = Array.from({ length: n_layer }, () => Array.from({ length: n_head }, () => []));
  let x;
  for (const id of ids) {
    x = model.step(id, cache, (layer, name, weights) => {
      if (name === "weights") weights.forEach((row, head) => rows[layer][head].push(row));
    });
  }
  return { rows, probs: softmax(Float64Array.from(model.logits(x))) };
}

/** What one model writes after ids: new ids, without the marker that ends a text. The same seed
    throws the same dice for every snapshot, so that what differs is what was learned. */
export function write({ model, tokenizer }, ids, { seed, temperature, most }) {
  const dice = new Dice(seed), cache = model.newCache(), made = [];
  let x;
  for (const id of ids) x = model.step(id, cache);
  for (;;) {
    const next = pick(chances(model.logits(x), [], { temperature }), 1 - dice.draw());
    if (next === tokenizer.endOfText) return made;
    made.push(next);
    if (made.length >= most || cache.length >= model.cfg.context_length) return made;
    x = model.step(next, cache);
  }
}
