/* A page with one live part, as the tests of single parts need it. */
import { createRequire } from "node:module";
import path from "node:path";
import { ROOT } from "./serve.mjs";

const { source: axe } = createRequire(path.join(ROOT, "book/package.json"))("axe-core");

/** The page's text: a part that stands alone, in light or dark. */
export const stage = (kind, text, theme) => `<!doctype html><html lang="en" data-theme="${theme}">
<title>t</title><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>html { --pst-color-background: ${theme === "dark" ? "#14181e" : "#fff"};
--pst-color-text-base: ${theme === "dark" ? "#ced6dd" : "#222"};
--pst-color-text-muted: ${theme === "dark" ? "#9ca4af" : "#48566b"};
--pst-color-border: #8884; --pst-color-surface: #8881; background: var(--pst-color-background);
color: var(--pst-color-text-base) } * { box-sizing: border-box }
.pst-scrollable-table-container { overflow-x: auto }</style>
<link rel="stylesheet" href="/_static/page/page.css">
<div class="live live-${kind}" id="${kind}" data-live="${kind}" data-text="${text}"><p>a picture</p>
</div><script type="module" src="/_static/page/start.js"></script></html>`;

/** What a test does with the part on the page. */
export function hand(page, origin, kind) {
  const at = (selector) => page.locator(`#${kind} ${selector}`);
  return { at, knob: (label) => page.getByLabel(label, { exact: true }),
    button: (name) => page.getByRole("button", { name, exact: true }),
    async says(pattern) {
      await page.waitForFunction(([id, what]) => new RegExp(what, "u").test(
        document.querySelector(`#${id} [role=status]`).textContent), [kind, pattern.source],
      { timeout: 90_000 }).catch(async () => {
        throw new Error(`${await at("[role=status]").textContent()} is not ${pattern}`);
      });
    },
    async open(address) {
      await page.goto(origin + address);
      await page.locator(`#${kind}.live-awake`).waitFor();
    },
    async accessible() {
      await page.evaluate(axe);
      const { violations } = await page.evaluate((id) => globalThis.axe.run(`#${id}`), kind);
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
      if (found.length) throw new Error(found.join("\n"));
    },
    async fits() {
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      if (wide > 0) throw new Error(`${wide} px too wide`);
    },
    async picture(name) {
      if (process.env.PICTURES) {
        await page.screenshot({ path: path.join(process.env.PICTURES, `${kind}-${name}.png`),
          fullPage: true });
      }
    } };
}
