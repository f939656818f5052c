/* Do the trainer's models learn as in PyTorch? The same file runs in Node and in a browser. */
import { Dice, examples, Letters } from "../../book/_static/page/letters.js";

/** The largest gaps between what is computed here and what the golden file says, for each model. */
export function learnAlike({ names, seed, batch, width, runs }) {
  const gap = (mine, theirs) => Math.abs(mine - theirs);
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
  }));
}
