/* Trains in a thread of its own, so that the page stays smooth; trainer.js says what to do. */
import { Dice, Letters } from "./letters.js";

const SLICE = 30, EVERY = 40, POINTS = 240;  // ms of work; steps between points; points at most
const MEASURED = 1500, REST = 50_000;        // letters that a point costs; steps without a word
let run = null, timer = 0;

/** A point of the curve: the mean of the batches since the last one, and the held-out names. */
function measure() {
  const { model, data, held, losses, steps } = run, sum = losses.reduce((a, b) => a + b, 0);
  run.points.push({ step: steps, held: held.count ? model.bits(held, MEASURED) : null,
    train: steps ? sum / losses.length / Math.LN2 : model.bits(data, MEASURED) });
  run.losses = [];
  if (run.points.length <= POINTS) return;
  Object.assign(run, { points: run.points.filter((_, i) => i % 2 === 0), every: 2 * run.every });
}

function report(state) {
  const { id, model, steps, pen } = run;
  if (run.losses.length && state !== "running") measure();
  run.told = performance.now();
  postMessage({ id, state, steps, points: run.points, norms: model.norms(),
    samples: Array.from({ length: 8 }, () => model.sample(pen)) });
}

/** One step; false once the loss is no number. */
function step() {
  const loss = run.model.step(run.data, run);
  run.losses.push(loss);
  if (++run.steps % run.every === 0 || [1, 2, 4, 8, 16].includes(run.steps)) measure();
  return Number.isFinite(loss);
}

function work() {
  for (const end = performance.now() + SLICE; performance.now() < end;) {
    if (!step()) return report("broken");
    if (run.steps % REST === 0) return report("resting");
  }
  if (performance.now() > run.told + run.pace) report("running");
  timer = setTimeout(work);
}

const TASKS = {
  begin(wish) {
    run = { ...wish, model: new Letters(wish.kind, wish), dice: new Dice(wish.seed),
      pen: new Dice(wish.seed), steps: 0, every: EVERY, losses: [], points: [] };
    measure();
    report("ready");
  },
  set: (wish) => Object.assign(run, wish),
  run: work,
  pause: () => report("paused"),
  step: () => report(step() ? "paused" : "broken"),
};
onmessage = ({ data: { task, wish } }) => {
  if (task !== "set") clearTimeout(timer);
  TASKS[task](wish);
};
