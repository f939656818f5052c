/* Does the page's engine of numbers find what minigpt.autograd finds? In Node and in a browser. */
import { formula, parse, words } from "../../book/_static/page/autograd.js";
import { layout } from "../../book/_static/page/graph.js";

const gap = (mine, theirs) => (mine === theirs ? 0 : Math.abs(mine - theirs) / Math.abs(theirs));

/** What was found: counts, the largest gap, and one line for each disagreement. */
export function agree({ formulas, mistakes }) {
  const wrong = [], found = { formulas: 0, slopes: 0, mistakes: 0, gap: 0, wrong };
  for (const { text, values, result, slopes, picture } of formulas) {
    const { root, leaves } = parse(text, new Map(Object.entries(values)));
    root.backward();
    const pairs = [[root.data, result],
      ...leaves.map((leaf) => [leaf.grad, slopes[leaf.name] ?? NaN])];
    if (leaves.length !== Object.keys(slopes).length) wrong.push(`${text}: other letters`);
    for (const [mine, theirs] of pairs) {
      if (!(gap(mine, theirs) < 1e-12)) wrong.push(`${text}: ${mine}, not ${theirs}`);
      found.gap = Math.max(found.gap, gap(mine, theirs));
    }
    const { places } = layout(root);
    const mine = root.walk().map((node) => [words(node), node.madeOf.length ? formula(node) : "",
      places.get(node).level, places.get(node).y]);
    if (JSON.stringify(mine) !== JSON.stringify(picture)) {
      wrong.push(`${text}: ${JSON.stringify(mine)}, not ${JSON.stringify(picture)}`);
    }
    found.formulas++;
    found.slopes += leaves.length;
  }
  for (const [text, says, values] of mistakes) {
    let said = "nothing";
    try { parse(text, new Map(Object.entries(values))); } catch (error) { said = error.message; }
    if (!said.includes(says)) wrong.push(`${text}: says “${said}”, not “${says}”`);
    found.mistakes++;
  }
  return found;
}
