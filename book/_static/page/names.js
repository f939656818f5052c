/* A text of names, one a line, becomes examples: a letter, and the letters that came before it. */
export const LETTERS = "._abcdefghijklmnopqrstuvwxyz";   // the dot begins and ends each name
export const MOST = 200_000;                             // characters of a text
const V = LETTERS.length, ONE_IN = 10;

/** The names in small letters. What is none of ours is dropped, and counted: signs, whole lines,
    and characters beyond the most. */
export function readNames(text) {
  const found = { names: [], signs: 0, lines: 0, cut: Math.max(0, text.length - MOST) };
  for (const line of text.slice(0, MOST).split(/\r\n|\r|\n/)) {
    const signs = [...line.trim().toLowerCase().normalize("NFD")];   // é is an e and an accent
    const name = signs.filter((sign) => sign !== "." && LETTERS.includes(sign)).join("");
    found.signs += signs.length - name.length;
    if (name) found.names.push(name);
    else if (signs.length) found.lines++;
  }
  return found;
}

/** About one name in ten is kept away from learning. Its letters decide: always the same ones. */
export function isHeldOut(name) {
  let hash = 2166136261;
  for (const letter of name) hash = Math.imul(hash ^ letter.charCodeAt(0), 16777619) >>> 0;
  return hash % ONE_IN === 0;
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

/** Bits a letter of the table that is counted: on these names no table of pairs can do better. */
export function countedBits(names) {
  const { x, y, count } = examples(names, 1), pairs = new Float64Array(V * V);
  for (let i = 0; i < count; i++) pairs[x[i] * V + y[i]]++;
  const row = (i) => pairs.subarray(i - i % V, i - i % V + V).reduce((a, b) => a + b);
  return pairs.reduce((sum, n, i) => (n ? sum - n * Math.log2(n / row(i)) : sum), 0) / count;
}
