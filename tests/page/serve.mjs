/* A small server and a browser for the tests of the live parts. Node's modules lie in book/. */
import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const { chromium } = createRequire(path.join(ROOT, "book/package.json"))("playwright-core");
const TYPES = { ".html": "text/html; charset=utf-8", ".js": "text/javascript",
  ".mjs": "text/javascript", ".json": "application/json", ".css": "text/css" };
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Serve { "/prefix/": folder or text }, open a browser, call use(page, origin), close all. */
export async function inBrowser(places, use) {
  const server = http.createServer((request, response) => {
    const url = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const prefix = Object.keys(places).filter((p) => url.startsWith(p))
      .sort((a, b) => b.length - a.length)[0];
    const place = places[prefix], file = place && path.join(place, url.slice(prefix.length));
    const body = place?.startsWith("<") ? place
      : file && fs.existsSync(file) && fs.statSync(file).isFile() ? fs.readFileSync(file) : null;
    const type = place?.startsWith("<") ? TYPES[".html"] : TYPES[path.extname(url)];
    response.writeHead(body === null ? 404 : 200,
      { "content-type": type ?? "application/octet-stream" });
    response.end(body);
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  try {
    const page = await (await browser.newContext()).newPage();
    page.troubles = [];
    page.on("pageerror", (error) => page.troubles.push(error.message));
    page.on("console", (m) => m.type() === "error" && page.troubles.push(m.text()));
    await use(page, `http://127.0.0.1:${server.address().port}`);
    if (page.troubles.length) throw new Error(page.troubles.join("\n"));
  } finally {
    await browser.close();
    server.close();
  }
}
