/* The zoo of reward hacking: choose what you pay for, train, and watch what you get. Nothing is
   calculated here: the runs were made before, and lie in zoo.json. */
import { field, h } from "./shell.js";

const BEAT = 260;                            // milliseconds a step
const KINDS = { hack: "what you chose", cure: "the cure" };
export const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0)
  : value.toFixed(Math.abs(value) >= 10 ? 1 : 2)).replace("-", "−");

const steps = (n) => `${n} step${n === 1 ? "" : "s"}`;

/** The newest sample at a step: [step, text]. */
export const sampleAt = (samples, n) => samples.filter(([at]) => at <= n).at(-1);

/** Both curves of one number, up to a step: paths for a square of 100 by 100, and its ticks. */
export function drawing(animal, of, shown) {
  const all = [...animal.hack, ...animal.cure].flatMap((run) => run[of]);
  const low = Math.min(0, ...all), high = Math.max(1, ...all);
  const every = [0.5, 1, 2, 5, 10, 20, 50].find((e) => (high - low) / e <= 6) ?? 100;
  const bottom = Math.floor(low / every) * every, top = Math.ceil(high / every) * every;
  const last = Math.max(...animal.hack.map((run) => run[of].length)) - 1;
  const up = (value) => (100 * (1 - (value - bottom) / (top - bottom))).toFixed(2);
  const path = (name, d, faint) => `<path class="live-line live-of-${name}"` +
    `${faint ? ' opacity="0.35"' : ""} d="${d}"/>`;
  const curve = (name, run, upTo, faint) => path(name, run[of].slice(0, upTo + 1)
    .map((value, n) => `${n ? "L" : "M"}${(100 * n / last).toFixed(2)} ${up(value)}`).join(""),
  faint);
  const ticks = Array.from({ length: Math.round((top - bottom) / every) + 1 },
    (_, i) => bottom + i * every);
  const paths = [...ticks.map((tick) => path("rule", `M0 ${up(tick)}H100`)),
    ...Object.entries(shown).filter(([, n]) => n !== null).flatMap(([kind, n]) =>
      animal[kind].map((run, i) => curve(kind === "hack" ? "held" : "counted", run, n, i > 0))
        .reverse())];
  return { paths: paths.join(""), ticks: ticks.map((tick) => [tick, up(tick)]), last };
}

export default async function zoo(host, { text }) {
  const reply = await fetch(new URL("zoo.json", import.meta.url));
  if (!reply.ok) throw new Error(`the recorded runs could not be fetched (${reply.status}).`);
  const { animals } = await reply.json();
  const run = { kind: "hack", n: 0, shown: { hack: 0, cure: null }, timer: null };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const [payLabel, pay] = field("You pay for", "select", {}, Object.entries(animals)
    .map(([name, { pays }]) => h("option", { value: name, selected: name === text.trim() }, pays)));
  const [stepLabel, slider] = field("Steps", "input", { type: "range", min: 0, step: 1, value: 0 });
  const meant = h("p", {}), says = h("p", { class: "live-count", role: "status" });
  const asks = h("p", { class: "live-head" }), sample = h("p", { class: "live-text" });
  const chart = (title) => {
    const box = h("div", { class: "live-chart" });
    box.innerHTML = '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img"></svg>';
    const marks = box.appendChild(h("div", { "aria-hidden": "true" }));
    return { title, svg: box.firstChild, marks,
      whole: h("div", {}, h("p", { class: "live-head" }, title), box) };
  };
  const charts = { reward: chart("What you pay"), truth: chart("What you meant, in truth") };
  const key = h("p", { class: "live-key" }, h("span", {}, h("i", { class: "live-of-held" }),
    ` ${KINDS.hack}`), " ", h("span", {}, h("i", { class: "live-of-counted" }), ` ${KINDS.cure}`),
  " (faint: two other seeds)");

  const animal = () => animals[pay.value];
  const runs = () => animal()[run.kind][0];
  const last = () => runs().reward.length - 1;

  function draw() {
    const { n, kind } = run, now = runs();
    for (const [of, { svg, marks, title }] of Object.entries(charts)) {
      const { paths, ticks, last: end } = drawing(animal(), of, run.shown);
      svg.innerHTML = paths;
      svg.setAttribute("aria-label", `${title}, with ${KINDS[kind]}: ${number(now[of][0])} at ` +
        `first, ${number(now[of][n])} after ${steps(n)}`);
      marks.replaceChildren(...ticks.map(([tick, y]) =>
        h("span", { class: "live-tick", style: `top:${y}%` }, String(tick).replace("-", "−"))),
      h("span", { class: "live-end" }, `${end} steps`));
    }
    const [at, said] = sampleAt(now.samples, n);
    asks.textContent = `Asked: “${now.question.split("\n").at(-1)}” It says after ${steps(at)}:`;
    sample.textContent = said || "(nothing)";
    slider.max = last();
    slider.value = n;
    slider.setAttribute("aria-valuetext", `${n} of ${last()} steps`);
  }

  function tell() {
    const { n, kind } = run, { reward, truth, tokens, alarm } = runs();
    const names = kind === "cure" ? `The cure (${animal().remedy}), ` : "";
    says.textContent = n === 0 ? `${names}before the first step: paid ${number(reward[0])}, in ` +
      `truth ${number(truth[0])}.`
      : `${names}after ${steps(n)}: paid ${number(reward[n])} (at first ${number(reward[0])}), in ` +
        `truth ${number(truth[n])} (at first ${number(truth[0])}); ${tokens[n].toFixed(0)} tokens ` +
        `an answer. What would have told, ${animal().notice}: from ` +
        `${Math.round(100 * alarm[0])}% to ${Math.round(100 * alarm[n])}%.`;
    says.textContent = says.textContent[0].toUpperCase() + says.textContent.slice(1);
  }

  function pause() {
    clearInterval(run.timer);
    run.timer = null;
    for (const [kind, button] of Object.entries(buttons)) button.textContent = LABELS[kind];
  }

  function goTo(n) {
    run.n = Math.max(0, Math.min(last(), n));
    run.shown[run.kind] = run.n;
    draw();
  }

  function begin() {                                   // another reward: nothing is trained yet
    pause();
    Object.assign(run, { kind: "hack", shown: { hack: 0, cure: null } });
    meant.textContent = `You mean: ${animal().meant}. In truth counts: ${animal().truth}.`;
    goTo(0);
    tell();
  }

  function press(kind) {
    const going = run.timer !== null && run.kind === kind;
    pause();
    if (going) return tell();
    const anew = run.kind !== kind || run.n >= last();
    run.kind = kind;
    if (anew) goTo(0);
    if (still) { goTo(last()); return tell(); }
    says.textContent = "It trains.";
    buttons[kind].textContent = "Pause";
    run.timer = setInterval(() => {
      goTo(run.n + 1);
      if (run.n >= last()) { pause(); tell(); }
    }, BEAT);
  }

  const LABELS = { hack: "Train", cure: "Train with the cure" };
  const buttons = Object.fromEntries(Object.entries(LABELS).map(([kind, name]) =>
    [kind, h("button", { type: "button", onclick: () => press(kind) }, name)]));
  pay.addEventListener("change", begin);
  slider.addEventListener("input", () => { pause(); goTo(+slider.value); tell(); });

  host.replaceChildren(h("div", {}, payLabel, pay), meant,
    h("div", { class: "live-row" }, ...Object.values(buttons), stepLabel, slider), says,
    h("div", { class: "live-two" }, charts.reward.whole, charts.truth.whole), key, asks, sample);
  begin();
}
