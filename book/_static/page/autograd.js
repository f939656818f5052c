/* The engine of minigpt.autograd again: numbers that remember what they were made of, with the same
   operations and the same walk back; and a parser, so that a reader can write what to compute. */

export class Value {
  constructor(data, madeOf = [], op = "") {
    Object.assign(this, { data, grad: 0, madeOf, op });      // madeOf: pairs of a part and a slope
  }

  add(other) {
    other = value(other);
    return new Value(this.data + other.data, [[this, 1], [other, 1]], "+");
  }

  mul(other) {
    other = value(other);
    return new Value(this.data * other.data, [[this, other.data], [other, this.data]], "*");
  }

  /** A power with a plain number on top. */
  pow(n) {
    const x = this.data;
    if (x === 0 && n < 0) fail(`0 ** ${n} is no number; what stands below must not be 0`);
    if (x < 0 && n !== Math.trunc(n)) {
      fail(`${plain(x)} ** ${n} is no number; below 0 the exponent must be whole`);
    }
    const slope = x || n >= 1 ? n * x ** (n - 1) : n === 0 ? 0 : Infinity;
    return new Value(x ** n, [[this, slope]], `** ${n}`);
  }

  exp() {
    const e = Math.exp(this.data);
    return new Value(e, [[this, e]], "exp");
  }

  log() {
    const x = this.data;
    if (x <= 0) fail(`the logarithm of ${plain(x)} is no number; it must be above 0`);
    return new Value(Math.log(x), [[this, 1 / x]], "log");
  }

  tanh() {
    const t = Math.tanh(this.data);
    return new Value(t, [[this, 1 - t * t]], "tanh");
  }

  relu() { return new Value(Math.max(0, this.data), [[this, +(this.data > 0)]], "relu"); }
  neg() { return this.mul(-1); }
  sub(other) { return this.add(value(other).neg()); }
  div(other) { return this.mul(value(other).pow(-1)); }

  /** This value and all that it was made of, each after its parts. */
  walk() {
    const order = [], seen = new Set(), waiting = [[this, false]];
    while (waiting.length) {
      const [node, partsDone] = waiting.pop();
      if (partsDone) order.push(node);
      else if (!seen.has(node)) {
        seen.add(node);
        waiting.push([node, true], ...node.madeOf.map(([part]) => [part, false]));
      }
    }
    return order;
  }

  /** Give the parts what this value's slope makes of theirs. */
  passOn() {
    for (const [part, slope] of this.madeOf) part.grad += this.grad * slope;
  }

  backward() {
    const order = this.walk();
    for (const node of order) if (node.madeOf.length) node.grad = 0;     // leaves add up
    this.grad = 1;
    for (const node of order.reverse()) node.passOn();
  }
}

export const value = (x) => (x instanceof Value ? x : new Value(x));

// ---- In words ----------------------------------------------------------------------------------
/** A number for a small box: four digits or so. */
export function plain(x) {
  const size = Math.abs(x);
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "no number" : x < 0 ? "−∞" : "∞";
  const said = size >= 1e5 || (size && size < 1e-4) ? x.toExponential(2) : size < 1
    ? +x.toPrecision(3) : +x.toFixed(Math.max(0, 4 - String(Math.trunc(size)).length));
  return String(said || 0).replaceAll("-", "−");
}

/** What a value is called: its name, its number, or how it was made. */
export const words = (node) => node.name ?? (node.madeOf.length ? formula(node) : plain(node.data));

/** The one operation that made a value; a part that has neither name nor number is "…". */
export function formula({ op, madeOf }) {
  const parts = madeOf.map(([part]) => part.name ?? (part.madeOf.length ? "…"
    : part.data < 0 ? `(${plain(part.data)})` : plain(part.data)));
  if (parts.length === 2) return parts.join(` ${op} `);
  return op.startsWith("**") ? `${parts[0]} ${op.replace("-", "−")}` : `${op}(${parts[0]})`;
}

// ---- The parser --------------------------------------------------------------------------------
const FUNCTIONS = ["exp", "log", "relu", "tanh"], MOST = 30, LONG = 8, LONGEST = 240;
const TOKEN = /\s*((?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[a-z_]\w*|\*\*|[-+*/()=;])/iy;
const isName = (token) => /^[a-z_]/i.test(token), isNumber = (token) => /^[\d.]/.test(token);

function fail(says) { throw new Error(says); }

/** The text in pieces, each with its place; a last empty one marks the end. */
function cut(text) {
  if (text.length > LONGEST) fail(`That is longer than ${LONGEST} letters: shorten it.`);
  const tokens = [];
  TOKEN.lastIndex = 0;
  for (let end = 0; text.slice(end).trim(); end = TOKEN.lastIndex) {
    const found = TOKEN.exec(text);
    if (!found) {
      const sign = [...text.slice(end).trim()][0];
      if (sign === "^") fail("A power is written **, as in a ** 2, and not ^.");
      fail(`“${sign}” means nothing here: use names, numbers, + - * / **, brackets, and ; ` +
        "between two formulas.");
    }
    const [, said] = found;
    if (isName(said) && said.length > LONG) fail(`${said} is too long: ${LONG} letters fit.`);
    tokens.push({ said, from: TOKEN.lastIndex - said.length, to: TOKEN.lastIndex });
  }
  return [...tokens, { said: "", from: text.length, to: text.length }];
}

/** Compute "d = a * b; d * d", with a map of the values of its letters (1 where it has none):
    { root, leaves }. What is wrong is said in one sentence, with what to do. */
export function parse(written, values = new Map()) {
  const text = written.replace(/[×·]/g, "*").replaceAll("−", "-");       // as books print them
  const tokens = cut(text), known = new Map(), leaves = [];
  let at = 0;
  const now = () => tokens[at].said, next = () => tokens[at++].said;
  const took = (sign) => now() === sign && Boolean(next());

  /** Do one step; if it cannot be done, name the piece of the text. */
  function make(start, step) {
    const piece = text.slice(tokens[start].from, tokens[at - 1].to);
    let node;
    try { node = step(); } catch (error) { fail(`In ${piece}: ${error.message}.`); }
    if (Number.isFinite(node.data)) return node;
    return fail(`${piece} is too large for a number (overflow): choose smaller values.`);
  }

  function lacks() {
    const before = tokens[at - 1]?.said ?? ";";
    fail(`${before === ";" ? `Before ${now()}` : `After ${before}`} something is missing: a ` +
      "number, a name or a bracket.");
  }

  function closed(inside) {
    if (took(")")) return inside;
    return now() && now() !== ";" ? unexpected() : fail("A bracket is not closed: add a ).");
  }

  function unexpected() {
    const before = tokens[at - 1].said;
    if (now() === ")") fail("A bracket is closed that was never opened: take away the ).");
    if (now() === "=") fail("On the left of = stands one name alone, as in d = a * b.");
    if (now() === "**") fail("Two powers in a row need brackets, as in (a ** 2) ** 3.");
    return fail(`Between ${before} and ${now()} an operation is missing: write ${before} * ` +
      `${now()}, perhaps.`);
  }

  function number(sign) {
    const start = at, n = sign * next();
    return make(start, () => new Value(n));
  }

  function atom() {
    const start = at;
    if (took("(")) return closed(sum());
    if (isNumber(now())) return number(1);
    if (!isName(now())) return lacks();
    const name = next();
    if (FUNCTIONS.includes(name)) {
      if (!took("(")) fail(`${name} needs brackets: write ${name}(a), say.`);
      const inside = closed(sum());
      return make(start, () => inside[name]());
    }
    if (now() === "(") {
      fail(`“${name}” is no function here: there are ${FUNCTIONS.join(", ")}. For a product ` +
        `write ${name} * (…).`);
    }
    if (!known.has(name)) {
      const data = values.get(name) ?? 1;
      if (!Number.isFinite(data)) fail(`${name} has no value: write a number into its field.`);
      known.set(name, Object.assign(new Value(data), { name }));
      leaves.push(known.get(name));
    }
    return known.get(name);
  }

  function power() {
    const start = at, base = atom();
    if (!took("**")) return base;
    const inBrackets = took("("), sign = took("-") ? -1 : 1;
    if (!isNumber(now())) {
      if (!now() || now() === ";") lacks();
      fail("The exponent must be a plain number, as in a ** 2. For others write exp(log(a) * b).");
    }
    const n = number(sign).data;
    if (inBrackets) closed();
    return make(start, () => base.pow(n));
  }

  function unary() {
    const start = at;
    if (!took("-")) return power();
    const inside = unary();
    return inside.name || inside.madeOf.length ? make(start, () => inside.neg())
      : new Value(-inside.data);
  }

  function chain(part, steps) {
    const start = at;
    let left = part();
    while (Object.hasOwn(steps, now())) {
      const sign = next(), right = part(), a = left;
      if (sign === "/" && right.data === 0) {
        fail(`Division by zero in ${text.slice(tokens[start].from, tokens[at - 1].to)}: what ` +
          "stands below must not be 0.");
      }
      left = make(start, () => a[steps[sign]](right));
    }
    return left;
  }

  const product = () => chain(unary, { "*": "mul", "/": "div" });
  const sum = () => chain(product, { "+": "add", "-": "sub" });

  let root;
  while (now()) {
    if (took(";")) continue;
    const name = isName(now()) && tokens[at + 1].said === "=" ? next() : null;
    if (name) next();
    if (FUNCTIONS.includes(name)) fail(`${name} is a function: take another name.`);
    root = sum();
    if (now() && now() !== ";") unexpected();
    if (known.has(name)) {
      const used = leaves.some((leaf) => leaf.name === name);
      fail(used ? `${name} is used before it is made: put ${name} = … first.`
        : `${name} is made twice: give the second another name.`);
    }
    if (name) { known.set(name, root); root.name ??= name; }
  }
  if (!root) fail("Write a formula, such as a * b + c.");
  const n = root.walk().length;
  if (n > MOST) fail(`That makes ${n} values; the picture has room for ${MOST}. Shorten it.`);
  return { root, leaves };
}
