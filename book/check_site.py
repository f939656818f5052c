"""Check the built site: it asks no other host, no link is broken, no directive shows."""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
           "audio": "src", "embed": "src", "object": "data", "image": "href", "use": "href"}
LINKED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect",
          "dns-prefetch", "manifest", "search"}
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


def problems(site: Path) -> list[str]:
    "One line for each thing that is wrong."
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


if __name__ == "__main__":
    trouble = problems(Path(sys.argv[1] if len(sys.argv) > 1 else "book/_build/html"))
    print("\n".join(trouble) or "no problem found")
    sys.exit(1 if trouble else 0)
