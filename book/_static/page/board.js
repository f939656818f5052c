/* A batch board: requests, slots, and what each slot does in each step. No page, only numbers.
   One step decodes a token for every slot, or reads up to CHUNK tokens of one prompt; chunked
   prefill does both in the same step. */
export const SLOTS = 4, CHUNK = 64;
const GAPS = [0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.7, 3];         // between arrivals: 1 on the average
const PROMPTS = [20, 40, 60, 90, 130, 180, 260, 400], ANSWERS = [2, 4, 6, 8, 11, 15, 20, 30];
const N_REQUESTS = 14, SEED = 12;

/** Requests, always the same ones: { arrive, prompt, answer }, the first at step 0. rate: how many
    arrive in a step. */
export function requests(rate, seed = SEED, n = N_REQUESTS) {
  let state = seed, clock = 0;
  const draw = (list) => {
    state = (1664525 * state + 1013904223) % 2 ** 32;  // Numerical Recipes' generator
    return list[Math.floor(state / 2 ** 32 * list.length)];
  };
  return Array.from({ length: n }, (_, i) => {
    const gap = draw(GAPS), prompt = draw(PROMPTS), answer = draw(ANSWERS);
    if (i) clock += gap;
    return { arrive: Math.floor(clock / rate), prompt, answer };
  });
}

/** Who reads in this step: the slot whose request came first among those with prompt left. */
const reader = (slots) => slots.filter((s) => s && s.read < s.prompt)
  .reduce((first, s) => (first && first.id < s.id ? first : s), null);

/** What one slot does in one step; it changes the slot. */
function act(slot, reading, chunked) {
  if (!slot) return { kind: "empty" };
  const cell = { kind: "wait", request: slot.id };
  if (slot === reading) {
    slot.read = Math.min(slot.prompt, slot.read + CHUNK);
    slot.made += slot.read === slot.prompt;            // its end gives the first token
    return { ...cell, kind: "prefill", token: slot.made === 1 };
  }
  const ready = slot.read === slot.prompt && slot.made < slot.answer;
  if (!ready || (reading && !chunked)) return cell;
  slot.made++;
  return { ...cell, kind: "decode", token: true };
}

/** Requests (in the order of their arrival) to a timeline: for each step { queue, cells }.
    continuous: a free slot is filled at once; otherwise only when all are free. */
export function simulate(list, { continuous, chunked }) {
  let slots = new Array(SLOTS).fill(null), next = 0;
  const columns = [];
  while (next < list.length || slots.some(Boolean)) {
    const step = columns.length, arrived = (id) => id < list.length && list[id].arrive <= step;
    if (continuous || !slots.some(Boolean)) {
      slots = slots.map((s) => s ?? (arrived(next)
        ? { id: next, ...list[next++], read: 0, made: 0 } : null));
    }
    const reading = reader(slots), cells = slots.map((s) => act(s, reading, chunked));
    const queue = list.map((_, id) => id).filter((id) => id >= next && arrived(id));
    columns.push({ queue, cells });
    const done = (s) => s && s.made === s.answer;
    if (continuous) slots = slots.map((s) => (done(s) ? null : s));
    else if (slots.every((s) => !s || done(s))) slots = slots.map(() => null);
  }
  return columns;
}

/** When the tokens of each request were made: the steps, in order. */
export function tokenSteps(columns, n) {
  const made = Array.from({ length: n }, () => []);
  columns.forEach(({ cells }, step) => cells.forEach((cell) => {
    if (cell.token) made[cell.request].push(step);
  }));
  return made;
}

/** What a timeline is worth. Waits are counted in steps, from arrival to the end of the step. */
export function figures(list, columns) {
  const made = tokenSteps(columns, list.length);
  const first = made.map((steps, id) => steps[0] + 1 - list[id].arrive).sort((a, b) => a - b);
  const pauses = made.flatMap((steps) => steps.slice(1).map((s, i) => s - steps[i]));
  const tokens = made.reduce((sum, steps) => sum + steps.length, 0);
  return { steps: columns.length, use: tokens / (SLOTS * columns.length),
    mean: first.reduce((a, b) => a + b, 0) / first.length,
    p95: first[Math.ceil(0.95 * first.length) - 1],    // nearest rank
    pause: Math.max(1, ...pauses) };
}
