// node letters_browser.mjs GOLDEN: train in a headless browser; prints what `learnAlike` found.
import path from "node:path";
import { inBrowser, ROOT } from "./serve.mjs";

const golden = path.resolve(process.argv[2]);
const places = { "/": "<!doctype html><title>t</title>", "/repo/": ROOT, "/golden.json": golden };
await inBrowser(places, async (page, origin) => {
  await page.goto(`${origin}/`);
  console.log(JSON.stringify(await page.evaluate(async () => {
    const { learnAlike } = await import("/repo/tests/page/letters.mjs");
    return learnAlike(await (await fetch("/golden.json")).json());
  })));
});
