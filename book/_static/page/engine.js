/* The book's model in plain JavaScript: its tokenizer, its weights, its arithmetic, its dice.
   It reads the files that `minigpt train` writes, and does for one token at a time what chapters
   21, 31 to 37, 50 and 51 do in PyTorch. Shapes stand in comments, as in the book. */

// ---- Text to tokens and back (`tokenizer`) ------------------------------------------------------
// Bytes are kept in strings of one letter a byte: they compare fast and are keys of a Map.
const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const CHUNK = new RegExp([
  "'(?:[sS\\u017fdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "\\p{N}",
  ` ?[^${SPACE}\\p{L}\\p{N}]+[\\r\\n]*`, `[${SPACE}]*[\\r\\n]+`, `[${SPACE}]+(?![^${SPACE}])`,
  `[${SPACE}]+`].join("|"), "gu");
const PATTERN = "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" +
  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";     // as tokenizer.json has it

/** Half a letter becomes U+FFFD, as in UTF-8. */
export const wellFormed = (text) => new TextDecoder("utf-8", { ignoreBOM: true })
  .decode(new TextEncoder().encode(text));
const toBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** GPT-2's alphabet: a printable letter for each of the 256 bytes. */
function letterBytes() {
  const bytes = new Map();
  let hidden = 256;
  for (let b = 0; b < 256; b++) {
    const shown = (b > 32 && b < 127) || (b > 160 && b !== 173);
    bytes.set(String.fromCharCode(shown ? b : hidden++), String.fromCharCode(b));
  }
  return bytes;
}

export class Tokenizer {
  /** spec: what tokenizer.json holds. */
  constructor(spec) {
    if (spec?.pre_tokenizer?.pretokenizers?.[0]?.pattern?.Regex !== PATTERN) {
      throw new Error("This tokenizer.json splits text in another way than the book's tokenizer.");
    }
    const byte = letterBytes();
    this.tokens = [];
    for (const [shown, id] of Object.entries(spec.model.vocab)) {
      this.tokens[id] = [...shown].map((letter) => byte.get(letter)).join("");
    }
    this.ranks = new Map(this.tokens.map((token, id) => [token, id]));
    this.special = new Map(spec.added_tokens.map((t) => [t.id, t.content]));
    this.endOfText = spec.added_tokens.find((t) => t.content === "<|endoftext|>")?.id;
    if (this.endOfText === undefined) throw new Error("This tokenizer.json lacks <|endoftext|>.");
    this.size = this.tokens.length + this.special.size;
  }

  /** Pieces that no token crosses; joined together they give the text back. */
  chunks(text) {
    return wellFormed(text).match(CHUNK) ?? [];
  }

  /** Every stage of one chunk, from single bytes to tokens: [[bytes, ...], ...]. */
  *stages(chunk) {
    let parts = [...toBytes(chunk)];
    const rank = (a, b) => this.ranks.get(a + b) ?? Infinity;
    const ranks = parts.slice(1).map((b, i) => rank(parts[i], b));   // of each pair of neighbours
    yield parts;
    for (;;) {
      let best = 0;
      for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
      if (!ranks.length || ranks[best] === Infinity) return;
      parts = [...parts.slice(0, best), parts[best] + parts[best + 1], ...parts.slice(best + 2)];
      ranks.splice(best, 1);
      if (best > 0) ranks[best - 1] = rank(parts[best - 1], parts[best]);
      if (best < ranks.length) ranks[best] = rank(parts[best], parts[best + 1]);
      yield parts;
    }
  }

  /** Text to ids. A marker that a user types stays ordinary text. */
  encode(text) {
    return this.chunks(text).flatMap((chunk) => {
      const whole = this.ranks.get(toBytes(chunk));
      if (whole !== undefined) return [whole];
      return [...this.stages(chunk)].at(-1).map((part) => this.ranks.get(part));
    });
  }

  /** The bytes of one token: Uint8Array. */
  bytes(id) {
    const marker = this.special.get(id);
    if (marker !== undefined) return new TextEncoder().encode(marker);
    return Uint8Array.from(this.tokens[id] ?? "", (letter) => letter.charCodeAt(0));
  }

  /** Ids to text; a broken UTF-8 sequence becomes U+FFFD. */
  decode(ids) {
    const bytes = ids.flatMap((id) => [...this.bytes(id)]);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}

// ---- Weights from a file (`checkpoint`) ----------------------------------------------------------
const KINDS = { F32: Float32Array, F16: Uint16Array, BF16: Uint16Array, I8: Int8Array };

/** Numbers of 32 bits: bfloat16 is the upper half of a float32, F16 has 5 + 10 bits. */
function widen(values, dtype) {
  if (dtype === "F32" || dtype === "I8") return Float32Array.from(values);
  if (dtype === "BF16") return new Float32Array(Uint32Array.from(values, (h) => h << 16).buffer);
  return Float32Array.from(values, (h) => {
    const sign = h & 0x8000 ? -1 : 1, power = (h >> 10) & 31, part = h & 1023;
    if (power === 31) return part ? NaN : sign * Infinity;
    return sign * (power ? (1 + part / 1024) * 2 ** (power - 15) : part * 2 ** -24);
  });
}

/** A .safetensors file: { about, tensors: name -> Float32Array, row after row }, those wanted. */
export function readSafetensors(buffer, wanted = () => true) {
  const size = buffer.byteLength < 8 ? Infinity
    : Number(new DataView(buffer).getBigUint64(0, true));
  if (8 + size > buffer.byteLength) throw new Error("This is not a whole .safetensors file.");
  const { __metadata__: notes, ...entries } =
    JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const tensors = new Map();
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(entries)) {
    if (!KINDS[dtype]) continue;                     // a checkpoint's counters, say
    if (8 + size + to > buffer.byteLength) throw new Error(`The file ends within ${name}.`);
    if (!wanted(name)) continue;
    tensors.set(name, widen(new KINDS[dtype](buffer.slice(8 + size + from, 8 + size + to)), dtype));
  }
  for (const name of Object.keys(entries).filter((n) => entries[n].dtype === "I8")) {
    const W = tensors.get(name), scale = tensors.get(`${name}.scale`);    // of each row
    if (!scale) throw new Error(`${name} is kept in 8 bits, and the file lacks its scale.`);
    tensors.set(name, W.map((v, i) => v * scale[Math.floor(i * scale.length / W.length)]));
    tensors.delete(`${name}.scale`);
  }
  return { about: JSON.parse(notes?.about ?? "{}"), tensors };
}

// ---- The arithmetic (`position` to `model`) --------------------------------------------------------
/** y = W x + b. W (M, N), x (N,), b (M,) or nothing. */
function linear(W, x, b) {
  const N = x.length, y = new Float32Array(W.length / N);
  for (let m = 0, w = 0; m < y.length; m++) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, n = 0;       // four sums: the processor adds them at once
    for (; n + 3 < N; n += 4, w += 4) {
      s0 += W[w] * x[n];
      s1 += W[w + 1] * x[n + 1];
      s2 += W[w + 2] * x[n + 2];
      s3 += W[w + 3] * x[n + 3];
    }
    for (; n < N; n++, w++) s0 += W[w] * x[n];
    y[m] = s0 + s1 + s2 + s3 + (b ? b[m] : 0);
  }
  return y;
}

/** x / (root of its mean square), times a learned scale. x (N,). */
function rmsNorm(x, scale, eps) {
  let squares = 0;
  for (const v of x) squares += v * v;
  const f = 1 / Math.sqrt(squares / x.length + eps);
  return x.map((v, i) => v * f * scale[i]);
}

/** As rmsNorm, but the mean is taken away first and a shift is added. */
function layerNorm(x, scale, shift, eps) {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  return rmsNorm(x.map((v) => v - mean), scale, eps).map((v, i) => v + shift[i]);
}

/** Positive numbers that sum to 1; -Infinity becomes 0. Any number type in, the same out. */
export function softmax(scores) {
  let best = -Infinity, sum = 0;
  for (const s of scores) if (s > best) best = s;
  const out = scores.map((s) => Math.exp(s - best));
  for (const s of out) sum += s;
  return out.map((s) => s / sum);
}

const ACTIVATIONS = {
  swiglu: (v) => v / (1 + Math.exp(-v)),
  gelu: (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))),
  relu2: (v) => Math.max(v, 0) ** 2,
};
const FIELDS = new Set(("vocab_size context_length n_layer n_head n_kv_head d_model d_ff norm " +
  "norm_place norm_eps attention position mlp bias qkv_bias qk_norm tie_embeddings d_attention " +
  "window rope_theta rope_scaling n_expert n_expert_used d_latent d_rope").split(" "));
const DEFAULTS = { attention: "heads", norm_place: "pre", window: null, d_attention: null,
  rope_scaling: null, n_expert: 0 };
const KNOWN = { norm: ["rms", "layer"], mlp: Object.keys(ACTIVATIONS), attention: ["heads"],
  position: ["rope", "learned", "none"], norm_place: ["pre", "post"], rope_scaling: [null],
  n_expert: [0] };

export class GPT {
  /** config: what config.json holds; tensors: name -> Float32Array. */
  constructor(config, tensors) {
    const cfg = { ...DEFAULTS, ...config };
    for (const [field, values] of Object.entries(KNOWN)) {
      if (!values.includes(cfg[field])) {
        throw new Error(`The page cannot run ${field}=${JSON.stringify(cfg[field])}; ` +
          `it knows ${values.map((v) => JSON.stringify(v)).join(", ")}.`);
      }
    }
    const strange = Object.keys(config).find((field) => !FIELDS.has(field));
    if (strange) throw new Error(`The page does not know the field ${strange} of config.json.`);
    this.cfg = cfg;
    this.d_head = (cfg.d_attention ?? cfg.d_model) / cfg.n_head;
    this.d_kv = this.d_head * cfg.n_kv_head;
    this.get = (name) => tensors.get(name);
    for (const [name, size] of this.sizes()) {
      const n = tensors.get(name)?.length;
      if (n === undefined) throw new Error(`The weights lack ${name}, which the config needs.`);
      if (n !== size) throw new Error("The weights and the config are of different models: " +
        `${name} has ${n} numbers, not ${size}.`);
    }
    this.turns = Float32Array.from({ length: this.d_head / 2 },
      (_, i) => cfg.rope_theta ** (-2 * i / this.d_head));              // radians a place
    this.parameters = [...tensors.values()].reduce((sum, t) => sum + t.length, 0);
  }

  /** The weights that the config asks for: [name, how many numbers]. */
  *sizes() {
    const { vocab_size: V, d_model: D, d_ff: F, n_head, n_layer, mlp, tie_embeddings } = this.cfg;
    yield ["embedding.weight", V * D];
    if (!tie_embeddings) yield ["head.weight", V * D];
    if (this.cfg.position === "learned") yield ["position.weight", this.cfg.context_length * D];
    for (let layer = 0; layer < n_layer; layer++) {
      const at = `blocks.${layer}`, q = n_head * this.d_head;
      for (const norm of ["attention_norm", "mlp_norm"]) yield [`${at}.${norm}.weight`, D];
      yield [`${at}.attention.query.weight`, q * D];
      yield [`${at}.attention.out.weight`, q * D];
      for (const name of ["key", "value"]) yield [`${at}.attention.${name}.weight`, this.d_kv * D];
      for (const name of mlp === "swiglu" ? ["gate", "up", "down"] : ["up", "down"]) {
        yield [`${at}.mlp.${name}.weight`, F * D];
      }
    }
  }

  /** An empty KV cache (`cache`). Setting `length` back forgets the tokens after it. */
  newCache() {
    const room = () => new Float32Array(this.cfg.context_length * this.d_kv);
    const layer = () => ({ keys: room(), values: room() });
    return { length: 0, layers: Array.from({ length: this.cfg.n_layer }, layer) };
  }

  norm(x, name) {
    const scale = this.get(`${name}.weight`), eps = this.cfg.norm_eps;
    return this.cfg.norm === "rms" ? rmsNorm(x, scale, eps)
      : layerNorm(x, scale, this.get(`${name}.bias`), eps);
  }

  linear(x, name) {
    return linear(this.get(`${name}.weight`), x, this.get(`${name}.bias`));
  }

  /** Turn each pair (i, i + Dh/2) of every head by the angle of its place. x (heads * Dh,). */
  rotate(x, place) {
    const half = this.d_head / 2;
    for (let h = 0; h < x.length; h += this.d_head) {
      for (let i = 0; i < half; i++) {
        const cos = Math.cos(place * this.turns[i]), sin = Math.sin(place * this.turns[i]);
        const a = x[h + i], b = x[h + i + half];
        x[h + i] = a * cos - b * sin;
        x[h + i + half] = b * cos + a * sin;
      }
    }
  }

  /** Queries, keys or values of one token, split into heads by place only: (heads * Dh,). */
  project(x, name, scale, place) {
    let y = this.linear(x, name);
    if (scale) {                                                        // qk_norm: each head
      for (let h = 0; h < y.length; h += this.d_head) {
        y.set(rmsNorm(y.slice(h, h + this.d_head), scale, this.cfg.norm_eps), h);
      }
    }
    if (place !== null && this.cfg.position === "rope") this.rotate(y, place);
    return y;
  }

  attention(x, name, cache, layer, place, note) {
    const { n_head, n_kv_head, window } = this.cfg, Dh = this.d_head, d = this.d_kv;
    const { keys, values } = cache.layers[layer];
    const q = this.project(x, `${name}.query`, this.get(`${name}.query_scale`), place);
    const k = this.project(x, `${name}.key`, this.get(`${name}.key_scale`), place);
    const v = this.project(x, `${name}.value`, null, null);
    keys.set(k, place * d);
    values.set(v, place * d);
    const first = window ? Math.max(0, place + 1 - window) : 0;
    const weights = [], blend = new Float32Array(n_head * Dh);
    for (let h = 0; h < n_head; h++) {
      const shared = Math.floor(h * n_kv_head / n_head) * Dh;           // query heads share keys
      const scores = new Float32Array(place + 1).fill(-Infinity);
      for (let s = first; s <= place; s++) {
        let dot = 0;
        for (let i = 0; i < Dh; i++) dot += q[h * Dh + i] * keys[s * d + shared + i];
        scores[s] = dot / Math.sqrt(Dh);
      }
      weights.push(softmax(scores));
      for (let s = first; s <= place; s++) {
        const w = weights[h][s], at = s * d + shared;
        for (let i = 0; i < Dh; i++) blend[h * Dh + i] += w * values[at + i];
      }
    }
    note?.("query", q), note?.("key", k), note?.("value", v);
    note?.("weights", weights), note?.("blend", blend);
    return this.linear(blend, `${name}.out`);
  }

  mlp(x, name, note) {
    const act = ACTIVATIONS[this.cfg.mlp], up = this.linear(x, `${name}.up`);
    const gate = this.cfg.mlp === "swiglu" ? this.linear(x, `${name}.gate`) : null;
    const hidden = gate ? up.map((v, i) => act(gate[i]) * v) : up.map(act);
    note?.("hidden units", hidden);
    return this.linear(hidden, `${name}.down`);
  }

  /** One token through the stack: its stream after the last norm (D,), and the cache one longer.
      note(layer, name, numbers), if it is given, sees every number on the way. */
  step(id, cache, note) {
    const { d_model: D, context_length, norm_place, n_layer, position } = this.cfg;
    const place = cache.length, places = position === "learned" && this.get("position.weight");
    if (place >= context_length) throw new Error(`All ${context_length} places are taken.`);
    let x = this.get("embedding.weight").slice(id * D, id * D + D);
    if (places) x = x.map((v, i) => v + places[place * D + i]);
    note?.(0, "embedding", x);
    for (let layer = 0; layer < n_layer; layer++) {
      const at = `blocks.${layer}`, here = note && ((name, numbers) => note(layer, name, numbers));
      for (const part of ["attention", "mlp"]) {
        const pre = norm_place === "pre", read = pre ? this.norm(x, `${at}.${part}_norm`) : x;
        const wrote = part === "mlp" ? this.mlp(read, `${at}.mlp`, here)
          : this.attention(read, `${at}.attention`, cache, layer, place, here);
        here?.(`${part} writes`, wrote);
        x = x.map((v, i) => v + wrote[i]);
        if (!pre) x = this.norm(x, `${at}.${part}_norm`);
        here?.(`stream after ${part}`, x);
      }
    }
    cache.length = place + 1;
    return norm_place === "pre" ? this.norm(x, "norm") : x;
  }

  /** A score for each token of the vocabulary, from what `step` returned: (V,). */
  logits(x) {
    return linear(this.get(this.cfg.tie_embeddings ? "embedding.weight" : "head.weight"), x);
  }
}

// ---- The dice (`sampling`) ---------------------------------------------------------------------
/** Logits (V,) to chances (V,), by the rules of `sampling` in the command line's order: penalties,
    top_k, top_p, min_p, temperature. past: the ids so far, markers left out. */
export function chances(logits, past, { temperature = 1, top_k = 0, top_p = 1, min_p = 0,
  repetition = 1, frequency = 0, presence = 0 } = {}) {
  const scores = Float64Array.from(logits), counts = new Map();
  for (const id of past) counts.set(id, (counts.get(id) ?? 0) + 1);
  for (const [id, n] of counts) {
    const lower = scores[id] > 0 ? scores[id] / repetition : scores[id] * repetition;
    scores[id] = lower - n * frequency - presence;
  }
  const order = Uint32Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  const keep = (n) => order.subarray(n).forEach((id) => { scores[id] = -Infinity; });
  if (top_k > 0) keep(top_k);
  if (top_p < 1) {
    const probs = softmax(scores);
    let sum = 0, n = 0;
    while (n < order.length && sum < top_p) sum += probs[order[n++]];
    keep(n);
  }
  if (min_p > 0) {
    const probs = softmax(scores), least = min_p * probs[order[0]];
    keep(order.findLastIndex((id) => probs[id] >= least) + 1);
  }
  if (temperature === 0) keep(1);
  return softmax(temperature === 0 ? scores : scores.map((s) => s / temperature));
}

/** Walk along the chances until u of them, 0 < u <= 1, lies behind: the id there is drawn. */
export function pick(probs, u) {
  let sum = 0, last = 0;
  for (let id = 0; id < probs.length; id++) {
    if (probs[id] === 0) continue;
    sum += probs[id];
    last = id;
    if (sum >= u) return id;
  }
  return last;                                       // u is 1 and the sum a rounding below it
}

// ---- Opening a model ---------------------------------------------------------------------------
/** read(name) gives a file's bytes (ArrayBuffer), or null: a folder of a site, or dropped files. */
export async function openModel(read) {
  const json = async (name) => read(name)
    .then((bytes) => bytes && JSON.parse(new TextDecoder().decode(bytes)));
  const [weights, spec, config] = await Promise.all(
    [read("model.safetensors"), json("tokenizer.json"), json("config.json")]);
  if (!weights) throw new Error("There is no model.safetensors among the files.");
  const { about, tensors } = readSafetensors(weights);
  const vocabulary = spec ?? about.tokenizer, shape = config ?? about.config;
  if (!vocabulary) throw new Error("The tokenizer.json is missing: choose the run's whole folder.");
  if (!shape) throw new Error("The config.json is missing: choose the run's whole folder.");
  const tokenizer = new Tokenizer(vocabulary), model = new GPT(shape, tensors);
  if (tokenizer.size > shape.vocab_size) {
    throw new Error(`The tokenizer has ${tokenizer.size} ids, the model only ${shape.vocab_size}.`);
  }
  return { model, tokenizer };
}
