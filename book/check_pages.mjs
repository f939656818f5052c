// Open every page of a built site in a browser, in light and in dark, and print one line for each
// problem. Usage: node check_pages.mjs SITE; the environment variable CHROMIUM names the browser.
import { readdir, readFile, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { availableParallelism } from "node:os";
import { extname, join, resolve, sep } from "node:path";
import { promisify } from "node:util";
import { gzip } from "node:zlib";

import axe from "axe-core";
import { HtmlValidate, StaticConfigLoader } from "html-validate";
import { chromium } from "playwright-core";

const BASE = "/minigpt/";  // a sub-path, as on the public site
const BYTES = 1_000_000;   // that a page fetches by itself, compressed as public hosts do
const MODEL = /\.safetensors$|\/tokenizer\.json$/;  // not counted
const UNCHANGED = new Set((process.env.UNCHANGED ?? "").split("\n"));  // found good before
const MOVED = /<meta http-equiv="refresh"/;  // leads to a page that is looked at itself
const PAINT = 1000;        // ms until the first text or picture is drawn
const PHONE = 360;         // px
const TEXT = 9;            // px
const PATIENCE = 60_000;   // ms for one page in one colour scheme
const AXE = {
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
  resultTypes: ["violations"],
};
const HTML = {
  root: true,
  extends: ["html-validate:standard", "html-validate:a11y", "html-validate:document"],
  rules: {
    // A hash guards a file that another host could change; every file here is our own.
    "require-sri": "off",
    // The groups of the table of contents: <h2> would put them before the page's <h1>.
    "prefer-native-element": ["error", { exclude: ["heading"] }],
  },
};
const TYPES = {
  ".css": "text/css", ".html": "text/html; charset=utf-8", ".js": "text/javascript",
  ".json": "application/json", ".mjs": "text/javascript", ".png": "image/png",
  ".svg": "image/svg+xml", ".wasm": "application/wasm", ".woff2": "font/woff2",
};
const COMPRESSED = /\.(css|html|m?js|json|svg|wasm)$/;

// ---- the site, served ---------------------------------------------------------------------------
async function pagesOf(site) {
  const files = (await readdir(site, { recursive: true })).map((f) => f.split(sep).join("/"));
  return files.filter((f) => f.endsWith(".html") && !f.split("/").includes("_static")).sort();
}

async function answer(site, request, response) {
  const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
  const file = join(site, path.slice(BASE.length), path.endsWith("/") ? "index.html" : "");
  const inside = path.startsWith(BASE) && file.startsWith(site + sep);
  const found = inside && await stat(file).catch(() => null);
  if (!found || !found.isFile()) return response.writeHead(404).end();
  const content = await readFile(file), small = COMPRESSED.test(file);
  const body = small ? await promisify(gzip)(content) : content;
  response.writeHead(200, {
    "content-type": TYPES[extname(file)] ?? "application/octet-stream",
    "content-length": body.length,
    "cache-control": "no-store",  // each page is weighed and timed as if it were the first
    ...(small && { "content-encoding": "gzip" }),
  }).end(body);
}

async function serve(site) {
  const server = createServer((request, response) => {
    answer(site, request, response).catch(() => response.writeHead(400).end());
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return server;
}

// ---- what is wrong ------------------------------------------------------------------------------
class Report {
  #found = new Map();  // "page: problem" -> the colour schemes in which it shows

  add(name, problem, scheme = "both") {
    const line = `${name}: ${problem.replace(/\s+/g, " ")}`;
    if (!this.#found.has(line)) this.#found.set(line, new Set());
    this.#found.get(line).add(scheme);
  }

  lines() {
    const only = (schemes) => schemes.size === 1 && !schemes.has("both");
    return [...this.#found].map(([line, s]) => line + (only(s) ? ` (${[...s][0]} only)` : ""))
      .sort();
  }
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const short = (text, length = 160) => text.length > length ? `${text.slice(0, length)}…` : text;

async function validate(name, text, report) {
  const validator = new HtmlValidate(new StaticConfigLoader(HTML));
  const { results } = await validator.validateString(text);
  const first = new Map();
  for (const message of results.flatMap((result) => result.messages)) {
    const same = first.get(message.ruleId) ?? { message, count: 0 };
    first.set(message.ruleId, { ...same, count: same.count + 1 });
  }
  for (const [rule, { message, count }] of first) {
    const places = count > 1 ? `, the first of ${count}` : "";
    report.add(name, `invalid HTML, line ${message.line}: ${message.message} (${rule}${places}); `
      + `see ${message.ruleUrl}`);
  }
}

/** Listen to all that a page asks for and says; the returned map fills with bytes by path. */
function watch(page, origin, tell) {
  const weights = new Map();
  const ours = (url) => url.startsWith(`${origin}/`);
  const local = (url) => /^(data|blob|about):/.test(url);
  page.on("request", (request) => {
    const url = request.url();
    if (!ours(url) && !local(url)) {
      tell(`asks another host for ${short(url)}; put a copy under book/_static and name that`);
    }
  });
  page.on("response", (response) => {
    const path = new URL(response.url()).pathname;
    if (!ours(response.url())) return;
    if (response.status() >= 400) {
      tell(`${response.status()} for ${path}; mend the address, or add the file`);
    } else if (!MODEL.test(path)) {
      weights.set(path, Number(response.headers()["content-length"]));
    }
  });
  page.on("console", (message) => {
    const text = message.text();
    if (!["error", "warning"].includes(message.type())) return;
    if (text.startsWith("Failed to load resource")) return;  // told above, with its address
    tell(`console ${message.type()}: ${short(text)}`);
  });
  page.on("pageerror", (error) => tell(`script error: ${short(String(error))}`));
  return weights;
}

function firstPaint() {  // runs in the page
  return new Promise((done) => {
    new PerformanceObserver((list) => {
      const paint = list.getEntriesByName("first-contentful-paint")[0];
      if (paint) done(paint.startTime);
    }).observe({ type: "paint", buffered: true });
    setTimeout(() => done(Infinity), 5000);
  });
}

/** In the page: the element that makes it too wide, and the smallest text. */
function readable(width) {
  const name = (element) => {
    const classes = [...element.classList].slice(0, 2).map((c) => `.${c}`).join("");
    return `<${element.localName}${element.id && `#${element.id}`}${classes}>`;
  };
  const scrolls = (element) => {
    for (let e = element; e && e !== document.body; e = e.parentElement) {
      if (getComputedStyle(e).overflowX !== "visible") return true;
    }
    return false;
  };
  const scroller = document.scrollingElement;
  const all = [...document.body.querySelectorAll("*")];
  const right = (element) => element.getBoundingClientRect().right;
  const widest = scroller.scrollWidth > width && all
    .filter((e) => right(e) > width + 1 && !scrolls(e.parentElement))
    .sort((a, b) => right(b) - right(a))[0];

  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let smallest = { size: Infinity };
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim(), parent = texts.currentNode.parentElement;
    if (!/[\p{L}\p{N}]/u.test(text) || !parent.checkVisibility({ checkOpacity: true })) continue;
    const box = parent.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;  // for screen readers
    const scale = parent.ownerSVGElement ? parent.getScreenCTM() : { a: 1, b: 0 };
    const size = parseFloat(getComputedStyle(parent).fontSize) * Math.hypot(scale.a, scale.b);
    if (size < smallest.size) smallest = { size, text: text.slice(0, 30), where: name(parent) };
  }
  return { width: scroller.scrollWidth, widest: widest ? name(widest) : "the page", smallest };
}

async function axeFindings(page, tell) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate((options) => globalThis.axe.run(options), AXE);
  for (const { id, impact, nodes, helpUrl } of violations) {
    if (!["serious", "critical"].includes(impact)) continue;
    const [{ target, any, all, none }] = nodes;
    const [{ message }] = [...any, ...all, ...none];
    const places = nodes.length > 1 ? `, the first of ${nodes.length}` : "";
    tell(`axe ${id} (${impact}${places}): ${target.join(" ")}: ${short(message, 240)}; `
      + `see ${helpUrl.split("?")[0]}`);
  }
}

function weigh(weights, tell) {
  const bytes = [...weights.values()].reduce((sum, n) => sum + n, 0);
  if (bytes < BYTES) return bytes;
  const n = (number) => number.toLocaleString("en");
  const [path, most] = [...weights].sort((a, b) => b[1] - a[1])[0];
  tell(`fetches ${n(bytes)} bytes, the limit is ${n(BYTES)}; the largest is ${path} (${n(most)})`);
  return bytes;
}

async function onPhone(page, tell) {
  await page.setViewportSize({ width: PHONE, height: 740 });
  const { width, widest, smallest } = await page.evaluate(readable, PHONE);
  if (width > PHONE) {
    tell(`${width} px wide on a screen of ${PHONE}, because of ${widest}; let it wrap, shrink, or `
      + "scroll inside itself");
  }
  if (smallest.size < TEXT) {
    tell(`text of ${smallest.size.toFixed(1)} px on a screen of ${PHONE}: "${smallest.text}" in `
      + `${smallest.where}; make it ${TEXT} px or more`);
  }
}

// ---- every page ---------------------------------------------------------------------------------
function within(limit, work) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`not done after ${limit / 1000} s`)), limit);
  });
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** Look at one page in one colour scheme; what needs no second look is done in light. */
async function check(context, origin, name, scheme, report) {
  const page = await context.newPage();
  const tell = (problem) => report.add(name, problem, scheme);
  const weights = watch(page, origin, tell);
  const seen = { name, bytes: 0, paint: 0 };
  const look = async () => {
    await page.goto(origin + BASE + name, { waitUntil: "load", timeout: PATIENCE });
    if (scheme === "light") seen.paint = await page.evaluate(firstPaint);
    await axeFindings(page, tell);
    await page.waitForLoadState("networkidle", { timeout: 5000 }).catch(() => {});
    if (scheme !== "light") return;
    seen.bytes = weigh(weights, (problem) => report.add(name, problem));
    await onPhone(page, (problem) => report.add(name, problem));
  };
  await within(PATIENCE, look()).catch((error) => tell(`not checked: ${short(error.message)}`));
  await page.close();
  return seen;
}

/** Time a slow page again, alone: other work on the machine may have held it up. */
async function paintAgain(context, origin, seen, report) {
  for (let again = 0; again < 3 && seen.paint > PAINT; again++) {
    const page = await context.newPage();
    const look = page.goto(origin + BASE + seen.name).then(() => page.evaluate(firstPaint));
    seen.paint = Math.min(seen.paint, await within(PATIENCE, look).catch(() => Infinity));
    await page.close();
  }
  if (seen.paint > PAINT) {
    report.add(seen.name, `first paint after ${Math.round(seen.paint)} ms, the limit is ${PAINT}; `
      + "load scripts with defer, and style sheets that are smaller");
  }
}

async function everyPage(browser, origin, names, report) {
  const contexts = {
    light: await browser.newContext({ colorScheme: "light" }),
    dark: await browser.newContext({ colorScheme: "dark" }),
  };
  const jobs = names.flatMap((name) => [[name, "light"], [name, "dark"]]);
  const seen = [];
  const worker = async () => {
    for (let job = jobs.shift(); job; job = jobs.shift()) {
      const [name, scheme] = job;
      seen.push(await check(contexts[scheme], origin, name, scheme, report));
    }
  };
  await Promise.all(Array.from({ length: Math.min(4, availableParallelism() + 1) }, worker));
  for (const page of seen) await paintAgain(contexts.light, origin, page, report);
  return seen;
}

async function inBrowser(site, names, report) {
  const server = await serve(site);
  const origin = `http://127.0.0.1:${server.address().port}`;
  const hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1";
  let browser;
  try {
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM, args: [hosts, "--disable-quic", "--disable-gpu"],
    });
    return await everyPage(browser, origin, names, report);
  } finally {
    await browser?.close();
    server.close();
    server.closeAllConnections();
  }
}

async function main(folder) {
  const site = resolve(folder), report = new Report(), start = Date.now();
  const names = await pagesOf(site);
  if (names.length === 0) throw new Error(`no page in ${site}: build the site first`);
  const shown = [];
  for (const name of names.filter((name) => !UNCHANGED.has(name))) {
    const text = await readFile(join(site, name), "utf8");
    await validate(name, text, report);
    if (!MOVED.test(text)) shown.push(name);
  }
  if (shown.length === 0) return console.error("  No page has changed since it was found good.");
  const seen = await inBrowser(site, shown, report);
  const most = (key) => seen.reduce((a, b) => (b[key] > a[key] ? b : a));
  const slow = most("paint"), heavy = most("bytes");
  console.error(`  ${plural(shown.length, "page")} in a browser, light and dark: `
    + `${Math.round((Date.now() - start) / 1000)} s; `
    + `latest first paint ${Math.round(slow.paint)} ms (${slow.name}); `
    + `most bytes ${heavy.bytes.toLocaleString("en")} (${heavy.name})`);
  for (const line of report.lines()) console.log(line);
}

main(process.argv[2]).catch((error) => {
  console.error(String(error.message).split("\n")[0]);
  process.exitCode = 2;
});
