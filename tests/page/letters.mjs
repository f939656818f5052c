/* Do the trainer's models learn as in PyTorch? The same file runs in Node and in a browser. */
import { Dice, Letters } from "../../book/_static/page/letters.js";
import { countedBits, examples, isHeldOut, readNames } from "../../book/_static/page/names.js";
import { GOOD } from "../../book/_static/page/trainer.js";

/** The largest gaps between what is computed here and what the golden file says, for each model. */
export function learnAlike({ names, seed, batch, width, held, texts, runs }) {
  const gap = (mine, theirs) => Math.abs(mine - theirs);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const reads = { held: same(names.filter(isHeldOut), held),
    texts: texts.filter(([text, found]) => same(readNames(text).names, found)).length };
  return Object.fromEntries(Object.entries(runs).map(([kind, run]) => {
    const model = new Letters(kind, { width }), data = examples(names, model.n);
    const found = { losses: 0, norms: 0, steps: 0, parameters: 0 };
    let dice = new Dice(seed);
    for (const [name, numbers] of Object.entries(run.weights)) {
      if (model.p[name].v.length !== numbers.length) throw new Error(`${kind}: ${name} differs`);
      model.p[name].v.set(numbers);
    }
    for (const loss of run.losses) {
      found.losses = Math.max(found.losses, gap(model.step(data, { batch, rate: run.rate, dice }),
        loss));
      if (found.steps++) continue;
      for (const [name, norm] of Object.entries(model.norms())) {
        found.norms = Math.max(found.norms, gap(norm, run.norms[name]));
        found.parameters++;
      }
    }
    dice = new Dice(seed);
    found.samples = run.samples.filter((name) => name === model.sample(dice)).length;
    found.bits = gap(model.bits(data), run.bits);
    return [kind, found];
  }).concat([["reads", reads]]));
}

/** Train a table of pairs with what the page begins with, until it is as good as the counted one,
    nearly: bits a letter of both, the steps, and the seconds for those who want to know. */
export function learnPairs(text) {
  const names = readNames(text).names.filter((name) => !isHeldOut(name));
  const model = new Letters("bigram"), data = examples(names, 1), counted = countedBits(names);
  const start = performance.now(), dice = new Dice(1);
  let steps = 0, bits = model.bits(data);
  while (steps < 4000 && bits >= counted + 0.02) {
    for (const end = steps + 20; steps < end; steps++) model.step(data, { ...GOOD.bigram, dice });
    bits = model.bits(data);
  }
  return { counted, bits, steps, seconds: (performance.now() - start) / 1000 };
}
