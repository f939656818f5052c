/* Small models of letters that learn in the browser: a table of pairs, a net with one hidden layer,
   one block with attention. No library: each operation does its work, and leaves on a tape how its
   slopes are found when the walk back comes by. `tests/letters_golden.py` holds all of it to
   PyTorch. Shapes stand in comments, as in the book. */
export const LETTERS = "._abcdefghijklmnopqrstuvwxyz";   // the dot begins and ends each name
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
    const far = Math.sqrt(-2 * Math.log(1 - this.draw()));
    return far * Math.cos(2 * Math.PI * this.draw());
  }
}

/** Each letter and each end of the names, with the n letters before it: x (count, n), y (count). */
export function examples(names, n) {
  const count = names.reduce((sum, name) => sum + name.length + 1, 0);
  const x = new Uint8Array(count * n), y = new Uint8Array(count);
  let at = 0;
  for (const name of names) {
    const ids = [...Array(n).fill(0), ...[...name].map((l) => LETTERS.indexOf(l)), 0];
    for (let i = n; i < ids.length; i++) {
      x.set(ids.slice(i - n, i), at * n);
      y[at++] = ids[i];
    }
  }
  return { x, y, count };
}

/** Bits a letter of the table that is counted: below it no table of pairs can learn. */
export function countedBits(names) {
  const { x, y, count } = examples(names, 1), pairs = new Float64Array(V * V);
  for (let i = 0; i < count; i++) pairs[x[i] * V + y[i]]++;
  const row = (i) => pairs.subarray(i - i % V, i - i % V + V).reduce((a, b) => a + b);
  return pairs.reduce((sum, n, i) => (n ? sum - n * Math.log2(n / row(i)) : sum), 0) / count;
}

/** Softmax of the n scores from `at` on, in their place; returns the log of their sum. */
function softmax(scores, at, n) {
  let most = -Infinity, sum = 0;
  for (let i = at; i < at + n; i++) if (!(scores[i] <= most)) most = scores[i];    // NaN stays
  for (let i = at; i < at + n; i++) sum += scores[i] = Math.exp(scores[i] - most);
  for (let i = at; i < at + n; i++) scores[i] /= sum;
  return most + Math.log(sum);
}

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
    const at = this.tape.push(back) - 1;
    if (this.boxes[at]?.v.length !== size) {
      this.boxes[at] = { v: new Float64Array(size), g: new Float64Array(size) };
    }
    this.boxes[at].v.fill(0);
    this.boxes[at].g.fill(0);
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

  /** The last of each n places: (rows * n, d) to (rows, d). */
  last(z, d) {
    const { n } = this, from = (i) => (Math.floor(i / d) * n + n - 1) * d + i % d;
    const out = this.box(z.v.length / n, () => out.g.forEach((g, i) => { z.g[from(i)] += g; }));
    out.v.forEach((_, i) => { out.v[i] = z.v[from(i)]; });
    return out;
  }

  /** q (rows, d) asks k (rows * n, d) and blends v (rows * n, d): softmax(q k / sqrt(d)) v. */
  attend(q, k, v, d) {
    const { n } = this, places = k.v.length / d, w = new Float64Array(places);
    const row = (place) => Math.floor(place / n) * d, scale = 1 / Math.sqrt(d);
    const out = this.box(q.v.length, () => {
      const dw = new Float64Array(places), mean = new Float64Array(places / n);
      for (let place = 0, at = 0; place < places; place++) {
        for (let i = row(place), end = i + d; i < end; i++, at++) {
          dw[place] += out.g[i] * v.v[at];
          v.g[at] += out.g[i] * w[place];
        }
        mean[Math.floor(place / n)] += w[place] * dw[place];
      }
      for (let place = 0, at = 0; place < places; place++) {
        const score = scale * w[place] * (dw[place] - mean[Math.floor(place / n)]);
        for (let i = row(place), end = i + d; i < end; i++, at++) {
          q.g[i] += score * k.v[at];
          k.g[at] += score * q.v[i];
        }
      }
    });
    for (let place = 0, at = 0; place < places; place++) {
      for (let i = row(place), end = i + d; i < end; i++, at++) w[place] += q.v[i] * k.v[at];
      w[place] *= scale;
    }
    for (let place = 0; place < places; place += n) softmax(w, place, n);
    for (let place = 0, at = 0; place < places; place++) {
      for (let i = row(place), end = i + d; i < end; i++, at++) out.v[i] += w[place] * v.v[at];
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
    const z = this.plus(this.lookUp(p.E, x), p.P), d = D[kind], last = this.last(z, d);
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
      total += softmax(logits.g, r * V, V) - logits.v[r * V + id];
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
      softmax(chances, 0, V);
      let left = dice.draw(), id = 0;
      while (id < V - 1 && (left -= chances[id]) >= 0) id++;
      if (id === 0) break;
      name += LETTERS[id];
      x.copyWithin(0, 1);
      x[this.n - 1] = id;
    }
    return name;
  }
}
