/* Weights on grids of few bits, and how well the model still reads: no page, no thread, only
   numbers. Its namesakes in book/_ext/still_quantize.py do the same in PyTorch. */
import { GPT } from "./engine.js";

export const REACHES = ["matrix", "row", "group"], GROUP = 32;
const f32 = Math.fround;

/** The float16 that is nearest to x >= 0; of two that are as near, the even one. */
export function half(x) {
  const step = 2 ** (Math.max(-14, Math.floor(Math.log2(x || 1))) - 10);
  const y = even(x / step) * step;
  return y > 65504 ? Infinity : y;
}

/** To the nearest whole number; a half goes to the even one. */
export function even(x) {
  const down = Math.floor(x), rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2) ? down + 1 : down;
}

/** The stretches of W (M, N), N = columns, that share a scale: [from, to]. */
export function* grids(W, columns, reach) {
  const line = reach === "matrix" ? W.length : columns, wide = reach === "group" ? GROUP : line;
  for (let row = 0; row < W.length; row += line) {
    for (let from = row; from < row + line; from += wide) {
      yield [from, Math.min(from + wide, row + line)];
    }
  }
}

/** Round W to levels -most .. most times a scale: the largest weight of each grid lies on its last
    level. { values (M, N), scales, zeros: how many weights are 0 }. */
export function rounded(W, columns, bits, reach) {
  const most = 2 ** (bits - 1) - 1, values = new Float32Array(W.length), scales = [];
  let zeros = 0;
  for (const [from, to] of grids(W, columns, reach)) {
    let reached = 0;
    for (let i = from; i < to; i++) reached = Math.max(reached, Math.abs(W[i]));
    const scale = half(f32(reached / most));
    scales.push(scale);
    for (let i = from; i < to; i++) {
      const code = scale && Math.max(-most, Math.min(most, even(f32(W[i] / scale))));
      values[i] = code * scale;
      if (code === 0) zeros++;
    }
  }
  return { values, scales, zeros };
}

/** The matrices of a model: [[name, columns], ...]. Its norms are single rows, and stay exact. */
export function matrices(model) {
  const { n_head, d_model, d_ff } = model.cfg;
  return [...model.sizes()].map(([name]) => name).filter((name) => !name.endsWith("norm.weight"))
    .map((name) => [name, name.endsWith(".out.weight") ? n_head * model.d_head
      : name.endsWith(".down.weight") ? d_ff : d_model]);
}

/** Y = W x for many x at once: two rows of W times four x, so that each number that is fetched
    serves more than one product. W (M, N), xs of (N,): ys of (M,). */
export function products(W, xs) {
  const N = xs[0].length, M = W.length / N, four = 4 * Math.ceil(xs.length / 4);
  const X = Array.from({ length: four }, (_, t) => xs[Math.min(t, xs.length - 1)]);
  const Y = X.map(() => new Float32Array(M));
  for (let t = 0; t < four; t += 4) {
    const [a, b, c, d] = X.slice(t, t + 4), [A, B, C, D] = Y.slice(t, t + 4);
    for (let m = 0; m < M; m += 2) {
      const up = m * N, low = m + 1 < M ? up + N : up;
      let a0 = 0, b0 = 0, c0 = 0, d0 = 0, a1 = 0, b1 = 0, c1 = 0, d1 = 0;
      for (let n = 0; n < N; n++) {
        const p = W[up + n], q = W[low + n];
        a0 += p * a[n], b0 += p * b[n], c0 += p * c[n], d0 += p * d[n];
        a1 += q * a[n], b1 += q * b[n], c1 += q * c[n], d1 += q * d[n];
      }
      A[m] = a0, B[m] = b0, C[m] = c0, D[m] = d0;
      A[m + 1] = a1, B[m + 1] = b1, C[m + 1] = c1, D[m + 1] = d1;    // beyond the last: no effect
    }
  }
  return Y.slice(0, xs.length);
}

/** The book's GPT, reading a whole text at once: each matrix is fetched once for all its tokens.
    Everything else, norms, rotation, attention, is the engine's. For models without biases. */
export class Reader extends GPT {
  constructor(config, tensors) {
    super(config, tensors);
    if (this.cfg.bias || this.cfg.qkv_bias || this.cfg.norm_place !== "pre"
      || this.cfg.position === "learned") {
      throw new Error("This part reads models without biases, and with their norms before.");
    }
    this.ready = null;
  }

  /** While a whole text is read: products that were made before, and the last one is left out. */
  linear(x, name) {
    return this.ready ? this.ready.get(name)?.[this.at] ?? x : super.linear(x, name);
  }

  /** Ids to streams after the last norm: one (D,) for each. */
  read(ids) {
    const D = this.cfg.d_model, table = this.get("embedding.weight"), cache = this.newCache();
    let xs = ids.map((id) => table.slice(id * D, id * D + D));
    for (let layer = 0; layer < this.cfg.n_layer; layer++) {
      for (const part of ["attention", "mlp"]) {
        const name = `blocks.${layer}.${part}`, seen = xs.map((x) => this.norm(x, `${name}_norm`));
        const [last, ...firsts] = part === "attention" ? ["out", "query", "key", "value"]
          : this.cfg.mlp === "swiglu" ? ["down", "gate", "up"] : ["down", "up"];
        this.ready = new Map(firsts.map((first) => [`${name}.${first}`,
          products(this.get(`${name}.${first}.weight`), seen)]));
        const inner = seen.map((x, t) => {
          this.at = t;
          return part === "mlp" ? this.mlp(x, name) : this.attention(x, name, cache, layer, t);
        });
        this.ready = null;
        const wrote = products(this.get(`${name}.${last}.weight`), inner);
        xs = xs.map((x, t) => x.map((v, i) => v + wrote[t][i]));
      }
    }
    return xs.map((x) => this.norm(x, "norm"));
  }

  /** How many bits a text and its end cost: -log2 of the chance of each token after those before. */
  bits(ids, endOfText) {
    const head = this.get(this.cfg.tie_embeddings ? "embedding.weight" : "head.weight");
    const targets = [...ids, endOfText];
    return products(head, this.read([endOfText, ...ids])).reduce((sum, logits, t) => {
      const best = logits.reduce((a, b) => Math.max(a, b), -Infinity);
      const total = logits.reduce((s, v) => s + Math.exp(v - best), 0);
      return sum + (Math.log(total) + best - logits[targets[t]]) / Math.LN2;
    }, 0);
  }
}
