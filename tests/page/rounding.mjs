// node rounding.mjs FOLDER GOLDEN: round the model of FOLDER in each of GOLDEN's settings and read
// its texts; prints what was found as JSON. Also small matrices, and numbers to make float16 of.
import { createHash } from "node:crypto";
import { GPT, readSafetensors, Tokenizer } from "../../book/_static/page/engine.js";
import { half, matrices, Reader, rounded } from "../../book/_static/page/rounding.js";
import { json, reader } from "./files.mjs";

const [folder, golden] = process.argv.slice(2), read = reader(folder);
const { settings, texts, small, numbers } = json(golden);
const text = async (name) => JSON.parse(new TextDecoder().decode(await read(name)));
const exact = readSafetensors(await read("model.safetensors")).tensors, now = new Map(exact);
const config = await text("config.json"), model = new Reader(config, now);
const tokenizer = new Tokenizer(await text("tokenizer.json"));
const documents = texts.map((t) => tokenizer.encode(t));

const found = settings.map(({ bits, reach, embedding }) => {
  const hash = createHash("sha256");
  let scales = 0, zeros = 0, weights = 0;
  for (const [name, columns] of matrices(model)) {
    const keep = bits === 32 || (!embedding && name === "embedding.weight");
    const grid = keep ? { values: exact.get(name), scales: [], zeros: 0 }
      : rounded(exact.get(name), columns, bits, reach);
    now.set(name, grid.values);
    hash.update(new Uint8Array(grid.values.map((v) => v + 0).buffer));    // -0 becomes 0
    scales += grid.scales.length;
    zeros += grid.zeros;
    weights += keep ? 0 : grid.values.length;
  }
  const losses = documents.map((ids) => model.bits(ids, tokenizer.endOfText));
  return { hash: hash.digest("hex"), scales, zeros, weights,
    loss: losses.reduce((a, b) => a + b) / losses.length };
});

// a text read at once costs what it costs token by token
const one = new GPT(config, now), cache = one.newCache(), ids = documents[0];
const stepwise = [tokenizer.endOfText, ...ids].reduce((sum, id, t) => {
  const logits = Float64Array.from(one.logits(one.step(id, cache)));
  const best = logits.reduce((a, b) => Math.max(a, b));
  const all = logits.reduce((s, v) => s + Math.exp(v - best), 0);
  return sum + (Math.log(all) + best - logits[ids[t] ?? tokenizer.endOfText]) / Math.LN2;
}, 0);
console.log(JSON.stringify({ found, stepwise, whole: model.bits(ids, tokenizer.endOfText),
  halves: numbers.map(half), small: small.map(({ W, columns, bits, reach }) => {
    const { values, scales } = rounded(Float32Array.from(W), columns, bits, reach);
    return { values: [...values].map((v) => v + 0), scales };
  }) }));
