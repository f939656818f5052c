// node walk.mjs GOLDEN [browser]: compare slopes, in Node or in a browser; prints what was found.
import fs from "node:fs";
import { agree } from "./slopes.mjs";

const [file, where] = process.argv.slice(2), golden = JSON.parse(fs.readFileSync(file, "utf8"));
if (where === "browser") {
  const { inBrowser, ROOT } = await import("./serve.mjs");
  const places = { "/": "<!doctype html><title>t</title>", "/repo/": ROOT };
  await inBrowser(places, async (page, origin) => {
    await page.goto(`${origin}/`);
    console.log(JSON.stringify(await page.evaluate(async (it) =>
      (await import("/repo/tests/page/slopes.mjs")).agree(it), golden)));
  });
} else console.log(JSON.stringify(agree(golden)));
