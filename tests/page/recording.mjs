// node recording.mjs FILE GOLDEN [REFUSED...]: every snapshot computes what PyTorch found; JSON.
// GOLDEN: [{ step, ids, logits, attention, greedy }]; REFUSED: files that must be refused.
import fs from "node:fs";
import { openRecording, read, write } from "../../book/_static/page/recording.js";
import { json } from "./files.mjs";

const [file, golden, ...refused] = process.argv.slice(2);
const bytes = (name) => {
  const { buffer, byteOffset, length } = fs.readFileSync(name);
  return buffer.slice(byteOffset, byteOffset + length);
};
const run = openRecording(bytes(file)), gap = (mine, theirs) =>
  mine.reduce((most, v, i) => Math.max(most, Math.abs(v - theirs[i])), 0);
const found = { steps: run.steps, rows: run.rows.length, probs: 0, attention: 0, wrong: [],
  refused: [] };
for (const { step, text, ids, probs, attention, greedy } of json(golden)) {
  const opened = run.at(run.steps.indexOf(step)), mine = read(opened.model, ids);
  found.probs = Math.max(found.probs, gap([...mine.probs], probs));
  for (const [layer, heads] of attention.entries()) {
    for (const [head, rows] of heads.entries()) {
      rows.forEach((row, t) => {
        found.attention = Math.max(found.attention, gap(mine.rows[layer][head][t], row));
      });
    }
  }
  const encoded = [run.tokenizer.endOfText, ...run.tokenizer.encode(text)];
  const said = write(opened, ids, { seed: 1, temperature: 0, most: greedy.length });
  if (encoded.join() !== ids.join()) found.wrong.push(`${step}: ids ${encoded}`);
  if (said.join() !== greedy.join()) found.wrong.push(`${step}: writes ${said}, not ${greedy}`);
}
for (const name of refused) {
  try { openRecording(bytes(name)); found.wrong.push(`${name} was opened`); } catch (error) {
    found.refused.push(error.message);
  }
}
console.log(JSON.stringify(found));
