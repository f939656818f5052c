"""Check the built site: first what its files say, then every page in a browser.

The files: no other host, no broken link, no directive that shows. The browser, which Node.js
drives from check_pages.mjs: requests, console, accessibility, valid HTML, weight, first paint, and
a phone. Without Node.js or a browser that part is left out; with CI=true it must not be.
"""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
           "audio": "src", "embed": "src", "object": "data", "image": "href", "use": "href"}
LINKED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect",
          "dns-prefetch", "manifest", "search"}
BOOK = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
            r"C:\Program Files\Google\Chrome\Application\chrome.exe")
OLDEST_NODE = 18
GOOD = "checked.json"      # beside the site: pages that need not be opened again
DIRECTIVE = re.compile(r"^\s*#\s*\|", re.M)


class Page(HTMLParser):
    "What a page fetches, where it links, which ids it has, and its text inside <pre>."

    def __init__(self, text: str):
        super().__init__()
        self.fetches, self.links, self.ids, self.no_alt, self.code = [], [], set(), [], []
        self.pre = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = {name: value or "" for name, value in attributes}
        self.ids |= {a[name] for name in ("id", "name") if name in a}
        if tag in FETCHED and FETCHED[tag] in a:
            self.fetches.append(a[FETCHED[tag]])
        if tag == "link" and LINKED & set(a.get("rel", "").split()):
            self.fetches.append(a.get("href", ""))
        self.fetches += re.findall(r"url\(\s*[\"']?([^\"')]+)", a.get("style", ""))
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "meta" and a.get("http-equiv", "").lower() == "refresh":
            self.links += re.findall(r"url=(\S+)", a.get("content", ""))
        if tag == "img" and a.get("role") != "presentation":
            alt = a.get("alt", "").strip()
            if not alt or alt == a.get("src") or "_images/" in alt:
                self.no_alt.append(a.get("src", "?"))
        self.pre += tag == "pre"

    def handle_endtag(self, tag):
        self.pre -= tag == "pre"

    def handle_data(self, data):
        if self.pre:
            self.code.append(data)


def outside(url: str) -> bool:
    return bool(urlsplit(url).netloc) or url.startswith("//")


# ---- files -------------------------------------------------------------------------------------
def in_files(site: Path) -> list[str]:
    "What the files themselves show to be wrong."
    site = site.resolve()
    files = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in files}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()

        def local(url: str, base=path) -> Path:
            target = (base.parent / unquote(urlsplit(url).path)).resolve() if urlsplit(url).path \
                else base
            return target / "index.html" if target.is_dir() else target

        for url in page.fetches:
            if url.startswith("data:") or url.startswith("#"):
                continue
            if outside(url):
                found.append(f"{name}: asks another host for {url}")
            elif url.startswith("/") or not local(url).is_relative_to(site):
                found.append(f"{name}: does not work under a sub-path: {url}")
            elif not local(url).is_file():
                found.append(f"{name}: missing file {url}")
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or outside(url):
                continue
            target = local(url)
            if url.startswith("/") or not target.is_relative_to(site) or not target.is_file():
                found.append(f"{name}: broken link {url}")
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].ids:
                    found.append(f"{name}: no such place on the page: {url}")
        if DIRECTIVE.search("".join(page.code)):
            found.append(f"{name}: a build directive (#| ...) shows")
        found += [f"{name}: image without a text for those who cannot see it (#| fig-alt: ...): "
                  f"{src}" for src in page.no_alt]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8", errors="replace")
        for url in re.findall(r"(?:@import\s+|url\()\s*[\"']?((?:https?:)?//[^\"')\s]+)", text):
            found.append(f"{sheet.relative_to(site).as_posix()}: asks another host for {url}")
    return found


# ---- browser -----------------------------------------------------------------------------------
def browser() -> str | None:
    named = os.environ.get("CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)


def missing() -> str:
    "What has to be installed before a browser can open the pages; empty if nothing."
    node = shutil.which("node")
    if not node or not shutil.which("npm"):
        return "Node.js or npm is missing: install both (on Debian: apt install nodejs npm)"
    version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    if int(re.match(r"v(\d+)", version)[1]) < OLDEST_NODE:
        return f"Node.js {version} is too old: install version {OLDEST_NODE} or newer"
    if not browser():
        named = os.environ.get("CHROMIUM")
        return (f"CHROMIUM={named} is no program: let it name Chromium or Chrome" if named else
                "no browser was found: install Chromium (on Debian: apt install chromium), or name "
                "one in the environment variable CHROMIUM")
    return ""


def install() -> str:
    "Install the tools that package-lock.json pins, once; return what went wrong."
    (BOOK / "_build").mkdir(exist_ok=True)
    with FileLock(BOOK / "_build" / "npm.lock"):         # tests in several processes ask for it
        return install_alone()


def install_alone() -> str:
    lock, stamp = BOOK / "package-lock.json", BOOK / "node_modules" / "installed.json"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return ""
    print("  Installing what book/package-lock.json pins (30 MB) ...", flush=True)
    done = subprocess.run([shutil.which("npm"), "ci", "--no-audit", "--no-fund"], cwd=BOOK,
                          capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        return f"`npm ci` in book/ failed: {(errors or ['no message'])[0]}"
    stamp.write_bytes(lock.read_bytes())
    return ""


def in_browser(site: Path) -> list[str]:
    "What only a browser can see to be wrong."
    lack = missing() or install()
    if lack and os.environ.get("CI") == "true":
        return [f"the pages were not opened in a browser: {lack}"]
    if lack:
        print(f"  The pages were not opened in a browser: {lack}.", flush=True)
        return []
    now, good = fingerprints(site), found_good(site)
    same = [name for name, mark in now.items() if good.get(name) == mark]
    done = subprocess.run([shutil.which("node"), BOOK / "check_pages.mjs", site],
                          stdout=subprocess.PIPE, encoding="utf-8",
                          env=os.environ | {"CHROMIUM": browser(), "UNCHANGED": "\n".join(same)})
    found = done.stdout.splitlines()
    if done.returncode:
        return [*found, "the browser's check did not finish: its message stands above"]
    bad = {line.split(": ")[0] for line in found}
    marks = json.dumps({name: mark for name, mark in now.items() if name not in bad})
    (site.parent / GOOD).write_text(marks, encoding="utf-8")
    return found


def found_good(site: Path) -> dict[str, str]:
    "Pages that were good when a browser last saw them; in CI none, so that all are opened."
    if os.environ.get("CI") == "true" or not (site.parent / GOOD).is_file():
        return {}
    return json.loads((site.parent / GOOD).read_text(encoding="utf-8"))


def fingerprints(site: Path) -> dict[str, str]:
    "For each page, a hash of the page, of everything that pages share, and of the checks."
    shared = hashlib.sha256()
    for path in [*sorted(site.rglob("_static/**/*")), BOOK / "check_pages.mjs",
                 BOOK / "package-lock.json"]:
        if path.is_file():
            shared.update(path.read_bytes())
    pages = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]
    return {p.relative_to(site).as_posix():
            hashlib.sha256(shared.digest() + p.read_bytes()).hexdigest() for p in pages}


def problems(site: Path) -> list[str]:
    "One line for each thing that is wrong."
    return [*in_files(site), *in_browser(site)]


if __name__ == "__main__":
    trouble = problems(Path(sys.argv[1] if len(sys.argv) > 1 else "book/_build/html"))
    print("\n".join(trouble) or "no problem found")
    sys.exit(1 if trouble else 0)
