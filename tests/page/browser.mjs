// node browser.mjs FOLDER GOLDEN: compare in a headless browser; prints what `agree` found as JSON.
import path from "node:path";
import { inBrowser, ROOT } from "./serve.mjs";

const [folder, golden] = process.argv.slice(2).map((name) => path.resolve(name));
const places = { "/": "<!doctype html><title>t</title>", "/repo/": ROOT, "/model/": folder,
  "/golden/": path.dirname(golden) };
await inBrowser(places, async (page, origin) => {
  await page.goto(`${origin}/`);
  const found = await page.evaluate(async (name) => {
    const { agree } = await import("/repo/tests/page/agree.mjs");
    const read = async (file) => {
      const reply = await fetch(`/model/${file}`);
      return reply.ok ? reply.arrayBuffer() : null;
    };
    return agree(await (await fetch(`/golden/${name}`)).json(), read);
  }, path.basename(golden));
  console.log(JSON.stringify(found));
});
