"""Typeset mathematics while the site is built: pages need no script and no other host for it.

KaTeX is a JavaScript program. The package jupyterlab-katex carries it, with its style sheet and
fonts, and mini-racer runs it here. LaTeX that KaTeX does not accept fails the build.
"""
import atexit
import functools
import json
import re
from importlib.metadata import files
from pathlib import Path

from docutils import nodes
from py_mini_racer import MiniRacer
from sphinx.util import logging

OPTIONS = {"throwOnError": True, "strict": "error", "macros": {r"\R": r"\mathbb{R}"}}
# The package's files are chunks of a web application: this loads them without a browser.
LOADER = """
var modules = {}, loaded = {}, self = this;
self.URL = class { constructor(path) { this.path = path } toString() { return this.path } };
self.webpackChunk_jupyterlab_katex_extension = { push: c => Object.assign(modules, c[1]) };
function load(id) {
  if (!loaded[id]) {
    loaded[id] = { exports: {}, id: id };
    modules[id].call(loaded[id].exports, loaded[id], loaded[id].exports, load);
  }
  return loaded[id].exports;
}
load.p = ""; load.b = "";
load.n = m => { const get = () => m && m.__esModule ? m.default : m; get.a = get; return get };
load.d = (to, all) => {
  for (const k in all) Object.defineProperty(to, k, { enumerable: true, get: all[k] });
};
"""
FIND = """
(function () {
  const found = {};
  for (const id in modules) {
    let m; try { m = load(id) } catch { continue }
    if (m && m.renderToString) self.katex = m;
    if (m) for (const part of Object.values(m))
      if (Array.isArray(part) && String(part).includes(".katex")) found.css = String(part);
  }
  return JSON.stringify(found);
})()
"""


@functools.cache
def katex() -> tuple[MiniRacer, str, Path]:
    "A JavaScript context with KaTeX in it, KaTeX's style sheet, and the folder of its fonts."
    chunks = [Path(f.locate()) for f in files("jupyterlab-katex")
              if re.fullmatch(r"\d+\.\w+\.js", f.name)]
    context = MiniRacer()
    atexit.register(context.close)       # Python 3.13 waits for ever at its end for an open one
    context.eval(LOADER)
    for chunk in chunks:
        context.eval(chunk.read_text(encoding="utf-8"))
    return context, json.loads(context.eval(FIND))["css"], chunks[0].parent


def typeset(latex: str, display: bool) -> str:
    return katex()[0].call("katex.renderToString", latex, OPTIONS | {"displayMode": display})


def html(self, node, display: bool) -> str:
    try:
        return typeset(node.astext(), display)
    except Exception as error:
        problem = str(error).splitlines()[0].split("ParseError: ")[-1]
        logging.getLogger(__name__).warning("%s in: %s", problem, node.astext(), location=node)
        return f"<code>{self.encode(node.astext())}</code>"


def inline(self, node):
    self.body.append(self.starttag(node, "span", "", CLASS="math") + html(self, node, False))
    self.body.append("</span>")
    raise nodes.SkipNode


def block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = f"({node['number']})"
        self.body.append(f'<span class="eqno">{number}')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(html(self, node, True) + "</div>\n")
    raise nodes.SkipNode


def styles(app, exception) -> None:
    "Put the style sheet and the fonts that it names beside the pages."
    if exception or app.builder.format != "html":
        return
    _, css, folder = katex()
    target = Path(app.outdir) / "_static" / "katex"
    target.mkdir(parents=True, exist_ok=True)
    fonts = sorted(set(re.findall(r"\w+\.woff2", css)))
    css = re.sub(r",\s*url\([^)]*\.(?:woff|ttf)\)\s*format\([^)]*\)", "", css)
    css = css.replace("font-display: block", "font-display: swap")
    for font in fonts:
        (target / font).write_bytes((folder / font).read_bytes())
    (target / "katex.css").write_text(css, encoding="utf-8")


def setup(app):
    app.add_html_math_renderer("katex", (inline, None), (block, None))
    app.add_css_file("katex/katex.css")
    app.connect("build-finished", styles)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
