"""The API reference: a module of the package, listed in _toc.yml, is a page about itself."""
import ast
import re
from pathlib import Path

import codelinks
import signatures
from docutils import nodes
from sphinx.parsers import Parser
from sphinx.util.docutils import SphinxDirective

LONG = 14                   # a constant of more lines is folded
CALLED = {"data": "Constant", "classmethod": "Class method", "staticmethod": "Static method"}
WORD = re.compile(r"([A-Za-z_]\w*)")


def link(docname: str, anchor: str = "", *children) -> nodes.reference:
    "A link within the site; without children it shows the page's title. See `resolve`."
    return nodes.reference("", "", *children, refuri="#", internal=True, place=(docname, anchor))


def resolve(app, doctree, docname: str) -> None:
    for node in doctree.findall(nodes.reference):
        if "place" in node:
            target, anchor = node["place"]
            uri = app.builder.get_relative_uri(docname, target)
            node["refuri"] = f"{uri}#{anchor}" if anchor else uri
            if not node.children:
                node += nodes.Text(app.env.titles[target].astext())


def homes() -> dict[str, str]:
    "The module of each name that only one module has."
    found = {}
    for module in signatures.modules().values():
        for name in module.entries:
            found[name] = None if name in found else module.name
    return {name: module for name, module in found.items() if module}


def code(text: str, known: dict[str, str]) -> nodes.literal:
    "An expression, with links at the names of the package."
    node = nodes.literal("", "", classes=["notranslate"])
    for part in WORD.split(text):
        if part in known:
            node += link(f"minigpt/{known[part]}", part, nodes.Text(part))
        elif part:
            node += nodes.Text(part)
    return node


def prose(text: str, known: dict[str, str]) -> list[nodes.Node]:
    "A sentence with code in `backticks`; a name of the package there is a link."
    parts = re.split(r"`([^`]+)`", text)
    return [code(part, known if part in known else {}) if i % 2 else nodes.Text(part)
            for i, part in enumerate(parts) if part]


def paragraph(*children, **attributes) -> nodes.paragraph:
    return nodes.paragraph("", "", *children, **attributes)


def listing(text: str, links=()) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="python", links=list(links))


def fold(summary: str, *children) -> list[nodes.Node]:
    start = f'<details class="source"><summary>{summary}</summary>'
    return [nodes.raw("", start, format="html"), *children,
            nodes.raw("", "</details>", format="html")]


class Page:
    "Builds the page of one module."

    def __init__(self, source: str, name: str, env):
        self.module, self.env = signatures.read(source, name), env
        self.known = homes() | dict.fromkeys(self.module.entries, name)
        finder = codelinks.Finder({}, name)
        finder.visit(ast.parse(source))
        self.links = finder.found

    def build(self) -> nodes.section:
        m, name = self.module, f"minigpt.{self.module.name}"
        self.env.get_domain("py").note_module(name, f"module-{m.name}", m.doc, "", False)
        page = nodes.section("", nodes.title("", name), ids=[f"module-{m.name}"])
        page += [paragraph(*prose(m.doc, self.known)),
                 paragraph(nodes.Text("Built in chapter "), link(f"nbs/{m.notebook}"),
                           nodes.Text("."), classes=["kind"])]
        for entry in m.entries.values():
            page += self.entry(entry)
        return page

    def entry(self, e: signatures.Entry, owner: bool = False) -> nodes.section:
        self.env.get_domain("py").note_object(
            f"minigpt.{self.module.name}.{e.name}", e.kind, e.name)
        title = nodes.title("", "", nodes.literal("", e.name.split(".")[-1]))
        section = nodes.section("", title, ids=[e.name])
        section += self.origin(e, owner)
        section += [paragraph(*prose(text, self.known)) for text in e.doc.split("\n\n") if text]
        if e.call and e.kind != "property":
            section += listing(e.call)
        rows = [*e.parameters, *([e.returns] if e.returns else [])]
        if rows:
            section += self.rows(rows, e.returns)
        if not owner:
            section += self.source(e)
        section += [self.entry(member, owner=True) for member in e.members]
        return section

    def origin(self, e: signatures.Entry, member: bool) -> nodes.paragraph:
        "What it is, and where the book builds it."
        text = [nodes.Text(CALLED.get(e.kind, e.kind.capitalize()))]
        if e.kind in ("class", "exception") and e.code.startswith("@dataclass"):
            text = [nodes.Text("Dataclass" + ", frozen" * ("frozen=True" in e.code))]
        for i, base in enumerate(e.bases):
            text += [nodes.Text(", " if i else ", builds on "), code(base, self.known)]
        if not member:
            text += [nodes.Text("; see it "), link(f"nbs/{self.module.notebook}",
                     f"cell-{e.cell}", nodes.Text("built in the chapter"))]
        return paragraph(*text, classes=["kind"])

    def rows(self, rows: list[signatures.Parameter], returns) -> nodes.definition_list:
        table = nodes.definition_list(classes=["parameters"])
        for p in rows:
            name = nodes.emphasis("", p.name) if p is returns else nodes.strong("", p.name)
            term = nodes.term("", "", name)
            if p.type:
                term += [nodes.Text(" "), code(p.type, self.known)]
            if p.default:
                term += [nodes.Text(" = "), nodes.literal("", p.default)]
            meaning = prose(p.meaning, self.known) or [nodes.Text("\u2013")]
            text = paragraph(*meaning, support_smartquotes=False)    # "heads" is a value
            table += nodes.definition_list_item("", term, nodes.definition("", text))
        return table

    def source(self, e: signatures.Entry) -> list[nodes.Node]:
        n_lines = e.code.count("\n") + 1
        end = e.line + n_lines
        links = codelinks.first([(line - e.line + 1, *rest) for line, *rest in self.links
                                 if e.line <= line < end and rest[1] != e.name])
        block = listing(e.code, links)
        if e.kind == "data" and n_lines <= LONG:
            return [block]
        lines = f"lines {e.line} to {end - 1}" if n_lines > 1 else f"line {e.line}"
        return fold(f"Source: minigpt/{self.module.name}.py, {lines}", block)


class ModuleParser(Parser):
    supported = ("minigpt",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        name = Path(document["source"]).stem
        document += Page(inputstring, name, self.env).build()


class ModuleList(SphinxDirective):
    "`{modules}`: the modules with a line each, and the names that `minigpt` itself offers."

    def run(self) -> list[nodes.Node]:
        known = homes()
        table = nodes.definition_list(classes=["parameters"])
        for m in signatures.modules().values():
            self.env.note_dependency(str(signatures.PACKAGE / f"{m.name}.py"))
            name = link(f"minigpt/{m.name}", "", nodes.literal("", f"minigpt.{m.name}"))
            table += nodes.definition_list_item("", nodes.term("", "", name), nodes.definition(
                "", paragraph(*prose(m.doc, known))))
        names = paragraph(nodes.Text("From "), nodes.literal("", "minigpt"),
                          nodes.Text(" itself you can import "))
        for i, (name, module) in enumerate(signatures.shortcuts().items()):
            names += [nodes.Text(", " if i else ""), code(name, {name: module})]
        names += nodes.Text(".")
        return [names, table]


def no_edit(app, pagename, template, context, doctree) -> None:
    if pagename.startswith("minigpt/"):
        context["page_source_suffix"] = ""      # nobody edits a generated module: no such button


def name_folds(app, pagename, template, context, doctree) -> None:
    "The theme's button that folds a list of pages has no name for those who cannot see it."
    tree = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *args, **options: str(tree(*args, **options)).replace(
        "<summary>", '<summary aria-label="Show or hide the pages of this section">')


def setup(app):
    app.add_source_suffix(".py", "minigpt")
    app.add_source_parser(ModuleParser)
    app.add_directive("modules", ModuleList)
    app.add_css_file("reference.css")
    app.connect("doctree-resolved", resolve)
    app.connect("html-page-context", no_edit, priority=100)
    app.connect("html-page-context", name_folds, priority=900)
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
