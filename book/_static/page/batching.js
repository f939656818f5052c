/* The batch board: requests arrive, wait, are read, are answered, and leave; the reader chooses the
   arrival rate and the policy. What happens when is worked out in board.js. */
import { CHUNK, figures, requests, simulate, SLOTS } from "./board.js";
import { field, h, refill } from "./shell.js";

const RATES = [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1], BEGIN = 0.3;
const BEAT = 180;                            // milliseconds a step
const CELL = 18, HIGH = 22;                  // px of a cell
const POLICIES = { static: "static", continuous: "continuous" };
const KINDS = { prefill: "reads its prompt", decode: "makes a token", wait: "waits for others",
  empty: "nobody there" };
const number = (value) => value.toFixed(1);
const names = (ids) => ids.map((id) => id + 1).join(", ");
const steps = (n) => `${n} step${n === 1 ? "" : "s"}`;

const box = (kind, x, y) => `<rect class="board-${kind}" x="${x + 1}" y="${y + 1}" ` +
  `width="${CELL - 2}" height="${HIGH - 2}" rx="2"/>`;

/** The first n steps of a timeline, one column each: the inside of an SVG. In the first row stands
    how many wait outside, below it the slots with the numbers of their requests. */
export function drawing(columns, n) {
  const text = (says, x, y, dim) => `<text${dim ? ' class="board-dim"' : ""} ` +
    `x="${x + CELL / 2}" y="${y + 15}">${says}</text>`;
  return columns.map(({ queue, cells }, step) => {
    const x = step * CELL, late = step >= n;
    return (queue.length && !late ? text(queue.length, x, 0, true) : "") + cells.map((cell, slot) => {
      const y = (slot + 1) * HIGH;
      if (late) return box("empty", x, y);
      const first = cell.kind === "prefill" && cell.token;
      return box(cell.kind, x, y) + (first ? box("first", x, y) : "")
        + (cell.request === undefined ? "" : text(cell.request + 1, x, y, cell.kind === "wait"));
    }).join("");
  }).join("") + (n ? `<rect class="board-now" x="${(n - 1) * CELL + 0.75}" y="0.75" ` +
    `width="${CELL - 1.5}" height="${(SLOTS + 1) * HIGH - 1.5}"/>` : "");
}

/** One step in words. */
export function telling({ queue, cells }, list, column) {
  const of = (kind) => cells.filter((cell) => cell.kind === kind).map((cell) => cell.request)
    .sort((a, b) => a - b);
  const [reading] = of("prefill"), made = of("decode"), waiting = of("wait");
  const many = (ids, one, more) => (ids.length === 1 ? one : more);
  const parts = [
    reading !== undefined && `request ${reading + 1} reads its prompt of ${list[reading].prompt} ` +
      "tokens",
    made.length && `${many(made, "request", "requests")} ${names(made)} ${
      many(made, "makes", "make")} a token`,
    waiting.length && `${many(waiting, "request", "requests")} ${names(waiting)} ${
      many(waiting, "waits", "wait")} for others`,
    queue.length && `outside ${many(queue, "waits", "wait")} ${names(queue)}`].filter(Boolean);
  return `Step ${column}: ${parts.join("; ") || "nobody is there"}.`;
}

export default function batching(host, { text }) {
  const words = text.toLowerCase().split(/\s+/), run = { n: 0, timer: null };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const [rateLabel, rate] = field("Requests that arrive in a step", "input",
    { type: "range", min: 0, max: RATES.length - 1, step: 1, value: RATES.indexOf(BEGIN) });
  const rateSays = h("span", { "aria-hidden": "true" });
  const [policyLabel, policy] = field("Batching", "select", {}, Object.entries(POLICIES)
    .map(([value, name]) => h("option", { value, selected: words.includes(value) }, name)));
  const [chunkLabel, chunked] = field("Chunked prefill", "input",
    { type: "checkbox", checked: words.includes("chunked") });
  const [stepLabel, slider] = field("Steps", "input", { type: "range", min: 0, step: 1, value: 0 });
  const says = h("p", { class: "live-count", role: "status" });
  const view = h("div", { class: "board-view", tabindex: 0, role: "group",
    "aria-label": "The board; it can be scrolled" });
  view.innerHTML = `<svg height="${(SLOTS + 1) * HIGH}" role="img"></svg>`;
  const svg = view.firstChild;
  const board = h("div", { class: "board" }, h("div", { class: "board-names", "aria-hidden": "true" },
    h("span", {}, "outside"), ...Array.from({ length: SLOTS }, (_, i) =>
      h("span", {}, `slot ${i + 1}`))), view);
  const key = h("p", { class: "live-key" });
  key.innerHTML = Object.entries(KINDS).map(([kind, name]) => `<span><svg viewBox="0 0 ${CELL} ` +
    `${HIGH}" aria-hidden="true">${box(kind, 0, 0)}</svg> ${name}</span> `).join("") +
    `<span><svg viewBox="0 0 ${CELL} ${HIGH}" aria-hidden="true">${box("prefill", 0, 0)}${
      box("first", 0, 0)}</svg> its first token</span>`;
  const queue = h("ol", { class: "live-tokens", "aria-label": "Requests that wait outside" });
  const rows = h("tbody", {}), head = (name) => h("th", { scope: "col" }, name);
  const table = h("div", { class: "pst-scrollable-table-container", tabindex: 0, role: "group",
    "aria-label": "What each policy achieves" }, h("table", { class: "table board-figures" },
    h("thead", {}, h("tr", {}, ...["batching", "steps in all", "slots used", "first token, mean",
      "first token, p95", "longest pause"].map(head))), rows));
  let list, columns;

  function draw() {
    const { n } = run, column = columns[n - 1];
    svg.innerHTML = drawing(columns, n);
    svg.setAttribute("width", columns.length * CELL);
    svg.setAttribute("aria-label", `${POLICIES[policy.value]} batching, ${steps(n)} of ` +
      `${columns.length}${column ? `. ${telling(column, list, n)}` : ""}`);
    const right = n * CELL - view.clientWidth + 2 * CELL;    // where the newest step is in view
    if (n === 0) view.scrollLeft = 0;
    else if (right > view.scrollLeft || (n - 1) * CELL < view.scrollLeft) view.scrollLeft = right;
    refill(queue, ...(column?.queue ?? []).map((id) => h("li", {}, h("span",
      { class: "live-token" }, `${id + 1}`, h("small", {},
        `${list[id].prompt} → ${list[id].answer}`)))));
    slider.max = columns.length;
    slider.value = n;
    slider.setAttribute("aria-valuetext", `${n} of ${steps(columns.length)}`);
  }

  function tell() {
    says.textContent = run.n ? telling(columns[run.n - 1], list, run.n)
      : `${list.length} requests will come. A number on the board is a request; what waits ` +
        "outside stands below with the tokens of its prompt → of its answer.";
  }

  /** What both policies achieve with these requests; the one on the board is marked. */
  function drawFigures() {
    rows.replaceChildren(...Object.keys(POLICIES).map((name) => {
      const all = simulate(list, { continuous: name === "continuous", chunked: chunked.checked });
      const { steps: total, use, mean, p95, pause } = figures(list, all);
      return h("tr", { "aria-current": name === policy.value && "true" },
        h("th", { scope: "row" }, POLICIES[name]), ...[total, `${Math.round(100 * use)}%`,
          number(mean), p95, pause].map((says) => h("td", {}, says)));
    }));
  }

  function pause() {
    clearInterval(run.timer);
    run.timer = null;
    play.textContent = "Play";
  }

  function goTo(n) {
    run.n = Math.max(0, Math.min(columns.length, n));
    draw();
  }

  /** Another rate or policy: the same moment of another timeline. */
  function change() {
    rateSays.textContent = RATES[rate.value];
    rate.setAttribute("aria-valuetext", `${RATES[rate.value]} a step`);
    list = requests(RATES[rate.value]);
    columns = simulate(list, { continuous: policy.value === "continuous",
      chunked: chunked.checked });
    drawFigures();
    goTo(run.n);
    if (run.timer === null) tell();
  }

  const button = (name, onclick) => h("button", { type: "button", onclick }, name);
  const play = button("Play", () => {
    const going = run.timer !== null;
    pause();
    if (going) return tell();
    if (run.n >= columns.length) goTo(0);
    if (still) {
      goTo(columns.length);
      return tell();
    }
    says.textContent = "It runs.";
    play.textContent = "Pause";
    run.timer = setInterval(() => {
      goTo(run.n + 1);
      if (run.n < columns.length) return;
      pause();
      tell();
    }, BEAT);
  });
  const moved = (n) => { pause(); goTo(n); tell(); };
  slider.addEventListener("input", () => moved(+slider.value));
  for (const knob of [policy, chunked]) knob.addEventListener("change", change);
  rate.addEventListener("input", change);

  host.replaceChildren(h("div", { class: "live-knobs quantize-knobs" },
    h("div", {}, policyLabel, policy), h("div", { class: "quantize-whole" }, chunked, chunkLabel),
    h("div", {}, rateLabel, h("div", { class: "live-row" }, rate, rateSays))),
  h("div", { class: "live-row" }, play, button("Step", () => moved(run.n + 1)),
    button("Reset", () => moved(0)), stepLabel, slider), board, key, says, queue, table,
  h("p", { class: "live-count" }, `Times are in steps. A step makes a token in every slot that is ` +
    `ready, or reads up to ${CHUNK} tokens of one prompt; with chunked prefill it does both.`));
  change();
}
