/* A graph of numbers: write a formula, watch its values come, and walk its slopes back. */
import { formula, parse, plain, words } from "./autograd.js";
import { field, h, later } from "./shell.js";

// ---- Where everything stands -------------------------------------------------------------------
/** Each value in a column after those of its parts, `y` in rows. A line that passes by a column
    has a place there too, so that it goes around the values. still_graph.py does the same. */
export function layout(root) {
  const order = root.walk().reverse(), places = new Map(), columns = [], lines = [];
  for (const node of order) {
    const steps = Math.max(-1, ...lines.filter((l) => l.part === node).map((l) => l.steps));
    places.set(node, { node, steps: steps + 1, size: 1, before: [], after: [], passing: [] });
    node.madeOf.forEach(([part, slope], slot) =>
      lines.push({ node, part, slope, slot, steps: steps + 1 }));
  }
  const last = Math.max(...lines.map((l) => l.steps + 1), 0);
  const stand = (place) => (columns[place.level] ??= []).push(place);
  const join = (a, b) => { a.after.push(b); b.before.push(a); };
  for (const [node, place] of places) {
    stand(Object.assign(place, { level: last - place.steps }));
    for (const line of lines.filter((l) => l.node === node)) {
      const from = places.get(line.part), way = line.way = [from];
      for (let level = last - from.steps + 1; level < place.level; level++) {
        if (!from.passing[level]) {
          from.passing[level] = { level, size: 0.5, before: [], after: [] };
          stand(from.passing[level]);
          join(way.at(-1), from.passing[level]);
        }
        way.push(from.passing[level]);
      }
      join(way.at(-1), place);
      way.push(place);
    }
  }
  for (const column of columns) column.forEach((place, row) => { place.y = row; });
  for (let round = 0; round < 8; round++) {
    for (const column of columns) settle(column, "before");
    for (const column of [...columns].reverse()) settle(column, "after");
  }
  for (const column of columns) settle(column, "before");
  const all = columns.flat(), top = Math.min(...all.map(({ y }) => y));
  for (const place of all) place.y -= top;
  return { places, lines, columns, rows: Math.max(...all.map(({ y }) => y)) + 1 };
}

/** Each place of a column as near as it can be to the middle of its neighbours on one side. */
function settle(column, side) {
  for (const place of column) {
    const near = place[side];
    place.wants = near.length ? near.reduce((sum, { y }) => sum + y, 0) / near.length : place.y;
  }
  column.sort((a, b) => a.wants - b.wants);
  const blocks = [];                                 // places that touch, and move together
  let room = 0;
  column.forEach((place, n) => {
    room += n ? (column[n - 1].size + place.size) / 2 : 0;
    place.y = room;
    let block = { sum: place.wants - room, places: [place] };
    while (blocks.length && blocks.at(-1).sum / blocks.at(-1).places.length
        > block.sum / block.places.length) {
      const above = blocks.pop();
      block = { sum: above.sum + block.sum, places: [...above.places, ...block.places] };
    }
    blocks.push(block);
  });
  for (const { sum, places } of blocks) for (const p of places) p.y += sum / places.length;
}

// ---- The picture -------------------------------------------------------------------------------
const WIDE = 112, HIGH = 58;

function svg(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** `shows(node)` says what is known of it: { value, slope, now, passes }; `down`: the graph runs
    from top to bottom, for a narrow screen. */
function picture({ places, lines, columns, rows }, shows, down) {
  const wide = down ? WIDE - 8 : WIDE, long = down ? HIGH : wide, step = long + 62;     // along it
  const broad = down ? wide : HIGH, row = broad + (down ? 8 : 10), fan = down ? 34 : 22;
  const u = (place) => 8 + long / 2 + place.level * step, v = ({ y }) => 8 + broad / 2 + y * row;
  const at = (along, across) => (down ? `${across} ${along}` : `${along} ${across}`);
  const text = (x, y, name, ...said) =>
    svg("text", { x, y, "text-anchor": "middle", class: name }, ...said);
  const arrows = [], labels = [];
  for (const { node, part, slope, slot, way } of lines) {
    const { value, passes } = shows(node), now = passes ? " graph-now" : "";
    const other = lines.find((l) => l.node === node && l.slot !== slot);
    const below = other && (way.at(-2).y - other.way.at(-2).y || slot - other.slot) > 0;
    const port = !other ? 0 : below ? fan / 2 : -fan / 2;
    let x = u(way[0]) + long / 2, y = v(way[0]), d = "", middle, end;
    const tail = [x, y];
    for (const stop of way.slice(1)) {
      const last = stop === way.at(-1), w = v(stop) + (last ? port : 0);
      const bow = last && other?.part === part ? 2 * port : 0, half = (x + u(stop) - long / 2) / 2;
      d += `${d ? "L" : "M"}${at(x, y)}C${at(half, y + bow)} ${at(half, w + bow)} ` +
        at(u(stop) - long / 2, w);
      middle = [half, (y + w) / 2 + 0.75 * bow];
      [x, y, end] = [u(stop) + long / 2, w, [u(stop) - long / 2, w]];
    }
    const [tip, back] = passes ? [tail, tail[0] + 8] : [end, end[0] - 8];
    arrows.push(svg("path", { d, class: `graph-line${now}` }),
      svg("path", { class: `graph-tip${now}`, d: `M${at(...tip)}L${at(back, tip[1] - 4.5)}` +
        `L${at(back, tip[1] + 4.5)}z` }));
    const by = (lower, sign, number) => labels.push(text(down ? middle[1] : middle[0],
      (down ? middle[0] : middle[1]) + lower, `graph-by${now}`, `${sign}\u2009${plain(number)}`));
    if (value) by(now ? -3 : 4, "×", slope);
    if (now) by(11, "=", node.grad * slope);
  }
  const boxes = [...places].map(([node, place]) => {
    const { value, slope, now } = shows(node), leaf = !node.madeOf.length;
    const [x, y] = down ? [v(place), u(place)] : [u(place), v(place)];
    const made = leaf ? "" : `${node.name ? " = " : ""}${formula(node)}`;
    return svg("g", { class: `graph-value${leaf ? " graph-leaf" : ""}${now ? " graph-now" : ""}` },
      svg("rect", { x: x - wide / 2, y: y - HIGH / 2, width: wide, height: HIGH, rx: 8 }),
      text(x, y - 11, "", svg("tspan", { "font-weight": "bold" }, node.name ?? ""),
        made || node.name ? made : "number"),
      text(x, y + 6, "", value ? `= ${plain(node.data)}` : "= ?"),
      text(x, y + 23, "graph-slope", slope));
  });
  const size = [columns.length * step - 62 + 16, (rows - 1) * row + broad + 16];
  const [width, height] = down ? size.reverse() : size;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    ...arrows, ...boxes, ...labels);
}

// ---- The part ----------------------------------------------------------------------------------
const GIVEN = /^(\w+) *= *(-?[\d.]+)$/;                // "a = 2": the value of a letter

/** "4 × 3 = 12", or ≈ where a number is rounded. */
function sum(numbers, sign, result) {
  const exact = [...numbers, result].every((x) =>
    +plain(x).replaceAll("−", "-") === +x.toPrecision(12));
  const said = numbers.map((x, n) => (n && x < 0 ? `(${plain(x)})` : plain(x)));
  return `${said.join(` ${sign} `)} ${exact ? "=" : "≈"} ${plain(result)}`;
}

/** The line of a box: the sum of what came back, or as much of it as the box holds. */
function slopeLine(got, node) {
  const all = sum(got, "+", node.grad), alone = `slope ${plain(node.grad)}`;
  if (got.length < 2) return got.length ? alone : "";
  return [`slope ${all}`, all].find((line) => line.length <= 17) ?? alone;
}

const and = (said) => said.join(", ").replace(/, ([^,]*)$/, " and $1");

export default function graphView(host, { text }) {
  const pieces = text.split(";").map((piece) => piece.trim());
  const values = new Map(pieces.map((piece) => piece.match(GIVEN)).filter(Boolean)
    .map(([, name, data]) => [name, +data]));
  const [label, box] = field("A formula, or several; the last one is the result", "input",
    { type: "text", maxlength: 240, autocomplete: "off", autocapitalize: "off",
      spellcheck: "false" });
  const sliders = h("div", { class: "graph-letters", role: "group", "aria-label": "Values" });
  const says = h("p", { class: "graph-says", role: "status" }), list = h("ol");
  const view = h("div", { class: "graph-view", role: "group", tabindex: 0,
    "aria-label": "The graph; the list below it says the same" });
  const narrow = matchMedia("(max-width: 480px)");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let graph, ready = Infinity, back = 0, timer = null;   // values known, steps walked back
  box.value = pieces.filter((piece) => !GIVEN.test(piece)).join("; ");

  /** Walk back so many steps: what each value got, and what to say of the last step. */
  function walk(steps) {
    const { root, made } = graph, got = new Map(steps ? [[root, [1]]] : []);
    for (const node of root.walk()) node.grad = 0;
    root.grad = steps ? 1 : 0;
    const past = [...made].reverse().slice(0, Math.max(0, steps - 1));
    for (const node of past) {
      node.passOn();
      for (const [part, slope] of node.madeOf) {
        got.set(part, [...got.get(part) ?? [], node.grad * slope]);
      }
    }
    return { got, past, now: past.at(-1) ?? (steps ? root : null) };
  }

  function sentence({ got, past, now }) {
    const { root, leaves, made } = graph, name = words(root);
    if (ready < made.length) return timer ? "" : "Press Forward: values come after their parts.";
    if (!back) return `Forward is done: ${name} is ${plain(root.data)}. Now step back.`;
    const parts = now.madeOf.map(([part]) => part), said = [];
    if (!past.length) {
      said.push(`The walk begins: the slope of ${name} is 1, for it moves as far as itself.`);
    } else said.push(`${words(now)} passes ${and(now.madeOf.map(([part, slope], n) =>
      `${sum([now.grad, slope], "×", now.grad * slope)} on to ${words(part)}` +
      (parts.indexOf(part) < n ? " once more" : "")))}.`);
    const receive = past.length ? [...new Set(parts)] : [];
    for (const part of receive.filter((node) => got.get(node).length > 1)) {
      said.push(`Together ${words(part)} has ${sum(got.get(part), "+", part.grad)}.`);
    }
    const wait = receive.filter((part) => made.some((node) => !past.includes(node)
      && node.madeOf.some(([other]) => other === part)));
    if (wait.length) said.push(`More is to come for ${and(wait.map(words))}.`);
    if (back > made.length) {
      said.push(`All slopes are there${leaves.length ? `: ${and(leaves.map((leaf) =>
        `${leaf.name} ${plain(leaf.grad)}`))}` : ""}.`);
    }
    const lost = [...got.keys()].find((node) => !Number.isFinite(node.grad));
    if (lost) said.push(`${words(lost)} has no finite slope here: move a value a little.`);
    return said.join(" ");
  }

  function show() {
    if (!graph) return;
    const { made } = graph, all = made.length, walked = walk(back), { got, now } = walked;
    const known = (node) => !node.madeOf.length || made.indexOf(node) < ready;
    const coming = timer && made[ready - 1];
    view.replaceChildren(picture(layout(graph.root), (node) => ({ value: known(node),
      slope: slopeLine(got.get(node) ?? [], node), now: node === (now ?? coming),
      passes: node === now && back > 1 }), narrow.matches));
    const left = view.querySelector(".graph-value.graph-now rect")?.x.baseVal.value;
    if (left < view.scrollLeft || left + WIDE > view.scrollLeft + view.clientWidth) {
      view.scrollLeft = left + WIDE / 2 - view.clientWidth / 2;
    }
    list.replaceChildren(...graph.root.walk().map((node) => h("li", {}, [node.name,
      node.madeOf.length ? formula(node) : null, known(node) ? plain(node.data) : "?"]
      .filter(Boolean).join(" = ") + (got.has(node) ? `, slope ${plain(node.grad)}` : ""))));
    says.textContent = sentence(walked);
    forward.setAttribute("aria-disabled", !all);
    for (const b of [step, whole]) b.setAttribute("aria-disabled", back > all);
    reset.setAttribute("aria-disabled", !ready && !back);
  }

  /** Read the formula and the letters again; what was done so far is done with the new numbers. */
  function read() {
    let wrong = "";
    try {
      const { root, leaves } = parse(box.value, values);
      graph = { root, leaves, made: root.walk().filter((node) => node.madeOf.length) };
      ready = Math.min(ready, graph.made.length);
      slide(leaves.map(({ name }) => name));
    } catch (error) { [graph, wrong] = [null, error.message]; }
    view.classList.toggle("graph-stale", Boolean(wrong));
    box.setAttribute("aria-invalid", Boolean(wrong));
    for (const b of buttons) b.setAttribute("aria-disabled", Boolean(wrong));
    if (wrong) says.textContent = wrong; else show();
  }

  /** A number and a slider for each letter; those that stay keep the focus. */
  function slide(letters) {
    const there = new Map([...sliders.children].map((row) => [row.dataset.letter, row]));
    if (String([...there.keys()]) === String(letters)) return;
    sliders.replaceChildren(...letters.map((name) => there.get(name) ?? row(name)));
  }

  function row(name) {
    const set = (from, to) => () => {
      halt();
      values.set(name, from.valueAsNumber);
      if (from.value) to.value = from.value;
      read();
    };
    if (!values.has(name)) values.set(name, 1);
    const [label, number] = field(name, "input", { type: "number", step: 0.1 });
    const range = h("input", { type: "range", min: -5, max: 5, step: 0.1,
      "aria-label": `Move ${name}` });
    number.value = range.value = values.get(name);
    number.addEventListener("input", set(number, range));
    range.addEventListener("input", set(range, number));
    return h("div", { "data-letter": name }, label, number, range);
  }

  const halt = () => { clearInterval(timer); timer = null; };
  const button = (name, f) => h("button", { type: "button", onclick: (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") === "true") return;
    halt();
    f();
    show();
  } }, name);
  const forward = button("Forward", () => {
    [ready, back] = [calm.matches ? graph.made.length : 0, 0];
    if (calm.matches) return;
    timer = setInterval(() => {
      if (ready >= graph.made.length) halt(); else ready++;
      show();
    }, 500);
  });
  const step = button("Step back", () => { [ready, back] = [graph.made.length, back + 1]; });
  const whole = button("All", () => { ready = graph.made.length; back = ready + 1; });
  const reset = button("Reset", () => { ready = back = 0; });
  const buttons = [forward, step, whole, reset];
  box.addEventListener("input", later(() => { halt(); [ready, back] = [Infinity, 0]; read(); }));
  narrow.addEventListener("change", show);
  host.replaceChildren(label, box, sliders, h("div", { class: "live-row" }, buttons), says, view,
    h("details", {}, h("summary", {}, "The graph as a list"), list));
  read();
}
