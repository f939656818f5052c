/* Does the page's engine agree with PyTorch? The same file runs in Node and in a browser. */
import { chatIds, Reader } from "../../book/_static/page/conversation.js";
import { chances, openModel, wellFormed } from "../../book/_static/page/engine.js";

const gap = (mine, theirs) =>
  mine.reduce((most, v, i) => Math.max(most, Math.abs(v - theirs[i])), 0);
const same = (a, b) => a.length === b.length && a.every((v, i) => v === b[i]);
const likeliest = (row) => row.reduce((best, v, i) => (v > row[best] ? i : best), 0);

/** What was found: counts, the largest gaps, and one line for each disagreement. */
export async function agree(golden, read) {
  const { model, tokenizer } = await openModel(read), wrong = [];
  const found = { texts: 0, runs: 0, talks: 0, logits: 0, attention: 0, chances: 0, ms: 0, wrong };
  for (const { text, ids } of golden.texts) {
    const mine = tokenizer.encode(text);
    if (!same(mine, ids)) wrong.push(`${JSON.stringify(text)}: ids ${mine}, not ${ids}`);
    if (tokenizer.decode(mine) !== wellFormed(text)) wrong.push(`${JSON.stringify(text)}: lost`);
    found.texts++;
  }
  let steps = 0, spent = 0;
  for (const run of golden.runs) {
    const cache = model.newCache(), rows = [];
    let logits, weights;
    run.ids.forEach((id, place) => {
      weights = [];
      const x = model.step(id, cache, (layer, name, w) => {
        if (name === "weights") weights.push(w);
      });
      logits = model.logits(x);
      const at = run.places.indexOf(place);
      if (at >= 0) found.logits = Math.max(found.logits, gap(logits, run.logits[at]));
    });
    for (const [layer, heads] of run.attention.entries()) {
      for (const [head, row] of heads.entries()) {
        const mine = weights[layer][head];
        if (mine.length !== row.length) wrong.push("attention: rows differ in length");
        found.attention = Math.max(found.attention, gap(mine, row));
      }
    }
    for (const { settings, probs } of run.chances) {
      const mine = chances(logits, run.ids.slice(1), settings);
      found.chances = Math.max(found.chances, gap(mine, probs));
    }
    const start = performance.now();
    while (rows.length < run.greedy.length) {
      rows.push(likeliest(logits));
      if (cache.length === model.cfg.context_length) continue;
      logits = model.logits(model.step(rows.at(-1), cache));
    }
    spent += performance.now() - start;
    steps += rows.length;
    if (!same(rows, run.greedy)) wrong.push(`${JSON.stringify(run.prompt)}: greedy text differs`);
    found.runs++;
  }
  const reader = golden.talks.length && new Reader({ model, tokenizer });    // of all, in a row
  for (const { messages, ids, reply } of golden.talks) {
    const mine = chatIds(tokenizer, messages), about = JSON.stringify(messages).slice(0, 80);
    if (!same(mine, ids)) wrong.push(`${about}: ids ${mine}, not ${ids}`);
    if (reply.length) {                              // one that was ended has no word after it
      const most = reply.length + tokenizer.special.has(reply.at(-1));
      const said = [...reader.reply(mine, most)].filter((id) => id !== null);
      if (!same(said, reply)) wrong.push(`${about}: says ${said}, not ${reply}`);
    }
    found.talks++;
  }
  return { ...found, ms: spent / steps };
}
