/* Small models of letters that learn in the browser: a table of pairs, a net with one hidden layer,
   one block with attention. No library: each operation does its work, and leaves on a tape how its
   slopes are found when the walk back comes by. `tests/letters_golden.py` holds all of it to
   PyTorch. Shapes stand in comments, as in the book. */
import { LETTERS } from "./names.js";

export const CONTEXT = { bigram: 1, mlp: 5, attention: 8 };    // letters that a model looks at
const V = LETTERS.length, LONGEST = 40, CHUNK = 256;
const D = { bigram: V, mlp: 16, attention: 32 };         // numbers that stand for a letter

/** The dice that Python throws, too: from the same seed comes the same training. */
export class Dice {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** From 0 up to, but not including, 1. */
  draw() {
    this.state = (Math.imul(1664525, this.state) + 1013904223) >>> 0;
    return this.state / 2 ** 32;
  }

  normal() {
    return Math.sqrt(-2 * Math.log(1 - this.draw())) * Math.cos(2 * Math.PI * this.draw());
  }
}

/** Scores become chances, in their place; returns the log of the sum that they were divided by. */
function softmax(scores) {
  let most = -Infinity, sum = 0;
  for (let i = 0; i < scores.length; i++) most = Math.max(most, scores[i]);       // NaN wins
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i] - most);
  for (let i = 0; i < scores.length; i++) scores[i] /= sum;
  return most + Math.log(sum);
}

/** Part r of an array whose parts have that size. */
const part = (array, r, size) => array.subarray(r * size, r * size + size);

/** y += x (rows, a) @ w (a, b). Four of the a, which 4 divides, at once: three times as fast. */
function times(y, x, w, a, b) {
  for (let at = 0; at < x.length; at += 4) {
    const x0 = x[at], x1 = x[at + 1], x2 = x[at + 2], x3 = x[at + 3], o = Math.floor(at / a) * b;
    for (let j = o, i = at % a * b; j < o + b; j++, i++) {
      y[j] += x0 * w[i] + x1 * w[i + b] + x2 * w[i + 2 * b] + x3 * w[i + 3 * b];
    }
  }
}

/** The way back: dx += dy @ w transposed, dw += x transposed @ dy. */
function timesBack(dy, x, w, dx, dw, a, b) {
  for (let at = 0; at < x.length; at += 4) {
    const x0 = x[at], x1 = x[at + 1], x2 = x[at + 2], x3 = x[at + 3], o = Math.floor(at / a) * b;
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let j = o, i = at % a * b; j < o + b; j++, i++) {
      const g = dy[j];
      s0 += g * w[i]; s1 += g * w[i + b]; s2 += g * w[i + 2 * b]; s3 += g * w[i + 3 * b];
      dw[i] += x0 * g; dw[i + b] += x1 * g; dw[i + 2 * b] += x2 * g; dw[i + 3 * b] += x3 * g;
    }
    dx[at] += s0; dx[at + 1] += s1; dx[at + 2] += s2; dx[at + 3] += s3;
  }
}

/** For each parameter: its rows, its columns, and the spread that its scaled numbers begin with. */
function plan(kind, width) {
  const n = CONTEXT[kind], d = D[kind], fair = 1 / Math.sqrt(d);
  return {
    bigram: { W: [V, V, 0] },
    mlp: { E: [V, d, 1], W1: [n * d, width, 5 / 3 / Math.sqrt(n * d)], b1: [1, width, 0],
      W2: [width, V, 0.01], b2: [1, V, 0] },
    attention: { E: [V, d, 0.5], P: [n, d, 0.5], Q: [d, d, fair], K: [d, d, fair], V: [d, d, fair],
      W1: [d, width, Math.SQRT2 * fair], b1: [1, width, 0],
      W2: [width, d, 0.1 / Math.sqrt(width)], b2: [1, d, 0], O: [d, V, 0.1 * fair] },
  }[kind];
}

export class Letters {
  /** kind: bigram, mlp or attention. init: scaled, or none for a spread of 1 in every matrix. */
  constructor(kind, { width = 64, init = "scaled", seed = 1 } = {}) {
    const dice = new Dice(seed);
    Object.assign(this, { kind, n: CONTEXT[kind], p: {}, tape: [], boxes: [] });
    for (const [name, [rows, columns, spread]] of Object.entries(plan(kind, width))) {
      const std = init === "none" && rows > 1 ? 1 : spread;      // a bias begins at 0 in any case
      this.p[name] = { rows, columns, v: new Float64Array(rows * columns),
        g: new Float64Array(rows * columns) };
      if (std) this.p[name].v.forEach((_, i, v) => { v[i] = std * dice.normal(); });
    }
  }

  // ---- Operations: values v on the way there, slopes g on the way back --------------------------
  /** An operation's result, zeros so far. The last pass left memory that is used again. */
  box(size, back) {
    const at = this.tape.push(back) - 1, fits = this.boxes[at]?.v.length === size;
    if (!fits) this.boxes[at] = { v: new Float64Array(size), g: new Float64Array(size) };
    for (const numbers of Object.values(this.boxes[at])) numbers.fill(0);
    return this.boxes[at];
  }

  /** The table's rows for some ids: (ids, columns). */
  lookUp(table, ids) {
    const d = table.columns, out = this.box(ids.length * d, () => ids.forEach((id, i) => {
      for (let j = 0; j < d; j++) table.g[id * d + j] += out.g[i * d + j];
    }));
    ids.forEach((id, i) => out.v.set(table.v.subarray(id * d, id * d + d), i * d));
    return out;
  }

  /** x + y; a shorter y, like a bias, is added again and again. */
  plus(x, y) {
    const n = y.v.length, out = this.box(x.v.length, () => {
      for (let i = 0; i < out.g.length; i++) { x.g[i] += out.g[i]; y.g[i % n] += out.g[i]; }
    });
    for (let i = 0; i < out.v.length; i++) out.v[i] = x.v[i] + y.v[i % n];
    return out;
  }

  /** x (rows, a) @ W (a, b), and a bias if there is one. */
  linear(x, W, bias) {
    const out = this.box(x.v.length / W.rows * W.columns,
      () => timesBack(out.g, x.v, W.v, x.g, W.g, W.rows, W.columns));
    times(out.v, x.v, W.v, W.rows, W.columns);
    return bias ? this.plus(out, bias) : out;
  }

  /** f of each number; slope(f(x)) is how f rises there. */
  bend(x, f, slope) {
    const out = this.box(x.v.length, () => {
      for (let i = 0; i < out.g.length; i++) x.g[i] += out.g[i] * slope(out.v[i]);
    });
    for (let i = 0; i < out.v.length; i++) out.v[i] = f(x.v[i]);
    return out;
  }

  /** q (rows, d) asks k (rows * n, d) and blends v (rows * n, d): softmax(q k / sqrt(d)) v. */
  attend(q, k, v, d) {
    const { n } = this, rows = q.v.length / d, chances = new Float64Array(rows * n);
    const out = this.box(rows * d, () => {
      for (let r = 0; r < rows; r++) {
        const p = part(chances, r, n), slope = new Float64Array(n), q1 = part(q.v, r, d);
        timesBack(part(out.g, r, d), p, part(v.v, r, n * d), slope, part(v.g, r, n * d), n, d);
        const mean = p.reduce((sum, chance, t) => sum + chance * slope[t], 0);
        p.forEach((chance, t) => { slope[t] = chance * (slope[t] - mean) / Math.sqrt(d); });
        timesBack(slope, part(k.v, r, n * d), q1, part(k.g, r, n * d), part(q.g, r, d), d, 1);
      }
    });
    for (let r = 0; r < rows; r++) {
      const p = part(chances, r, n);
      times(p, part(k.v, r, n * d), part(q.v, r, d), d, 1);
      p.forEach((score, t) => { p[t] = score / Math.sqrt(d); });
      softmax(p);
      times(part(out.v, r, d), p, part(v.v, r, n * d), n, d);
    }
    return out;
  }

  // ---- The models -------------------------------------------------------------------------------
  /** x (rows, n) letters to a score for each letter that may come next: (rows, 28). */
  logits(x) {
    const { p, kind } = this;
    this.tape = [];
    if (kind === "bigram") return this.lookUp(p.W, x);
    if (kind === "mlp") {
      const hidden = this.linear(this.lookUp(p.E, x), p.W1, p.b1);
      return this.linear(this.bend(hidden, Math.tanh, (h) => 1 - h * h), p.W2, p.b2);
    }
    const z = this.plus(this.lookUp(p.E, x), p.P), d = D[kind];              // (rows * n, d)
    const ends = Array.from({ length: x.length / this.n }, (_, r) => (r + 1) * this.n - 1);
    const last = this.lookUp({ ...z, columns: d }, ends);
    const q = this.linear(last, p.Q), k = this.linear(z, p.K), v = this.linear(z, p.V);
    const y = this.plus(last, this.attend(q, k, v, d)), hidden = this.linear(y, p.W1, p.b1);
    const active = this.bend(hidden, (h) => Math.max(0, h), (h) => (h > 0 ? 1 : 0));
    return this.linear(this.plus(y, this.linear(active, p.W2, p.b2)), p.O);
  }

  /** Mean loss in nats of the letters y that came; the logits' slopes, p - f, are left in them. */
  loss(logits, y) {
    let total = 0;
    logits.g.set(logits.v);
    y.forEach((id, r) => {
      total += softmax(part(logits.g, r, V)) - logits.v[r * V + id];
      logits.g[r * V + id] -= 1;
    });
    for (let i = 0; i < logits.g.length; i++) logits.g[i] /= y.length;
    return total / y.length;
  }

  /** Those examples of which `which` gives the numbers, r = 0, 1, ... */
  rows({ x, y }, rows, which) {
    const { n } = this, batch = { x: new Uint8Array(rows * n), y: new Uint8Array(rows) };
    for (let r = 0; r < rows; r++) {
      const at = which(r);
      batch.y[r] = y[at];
      for (let j = 0; j < n; j++) batch.x[r * n + j] = x[at * n + j];
    }
    return batch;
  }

  /** One step downhill, on examples drawn with replacement; the loss that it found, in nats. */
  step(data, { batch, rate, dice }) {
    const { x, y } = this.rows(data, batch, () => Math.floor(dice.draw() * data.count));
    const loss = this.loss(this.logits(x), y), all = Object.values(this.p);
    for (const p of all) p.g.fill(0);
    for (const back of this.tape.reverse()) back();
    for (const p of all) for (let i = 0; i < p.v.length; i++) p.v[i] -= rate * p.g[i];
    return loss;
  }

  /** The length of each parameter's gradient, as the last step found it. */
  norms() {
    return Object.fromEntries(Object.entries(this.p).map(([name, { g }]) =>
      [name, Math.sqrt(g.reduce((sum, v) => sum + v * v, 0))]));
  }

  /** Bits a letter on these examples, or on `most` of them, evenly spread. */
  bits(data, most = Infinity) {
    const count = Math.min(data.count, most);
    let total = 0;
    for (let from = 0; from < count; from += CHUNK) {
      const n = Math.min(CHUNK, count - from);
      const { x, y } = this.rows(data, n, (r) => Math.floor((from + r) * data.count / count));
      total += n * this.loss(this.logits(x), y);
    }
    return total / count / Math.LN2;
  }

  /** Write a name: a letter at a time, until the dot comes. */
  sample(dice) {
    const x = new Uint8Array(this.n);
    let name = "";
    while (name.length < LONGEST) {
      const chances = this.logits(x).v;
      softmax(chances);
      let left = dice.draw(), id = 0;
      while (id < V - 1 && (left -= chances[id]) >= 0) id++;
      if (id === 0) break;
      name += LETTERS[id];
      x.set([...x.subarray(1), id]);
    }
    return name;
  }
}
