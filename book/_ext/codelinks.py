"""Names of the package in code lead to the API reference; exported cells can be linked to.

A name counts as ours after `from minigpt.x import name`, or where the chapter exports it; a draft,
a variable or a parameter of the same name hides it. In a cell, each name is a link once.
"""
import ast
import html
import re

import signatures
from docutils import nodes

INNER = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Finder(ast.NodeVisitor):
    "Collects (line, column, text, module, name); `scope` says whose each name is, and is kept."

    def __init__(self, scope: dict[str, tuple[str, str]], exports_to: str = ""):
        self.scope, self.exports_to, self.depth, self.found = scope, exports_to, 0, []
        self.modules = signatures.modules()

    def link(self, node, text: str, shift: int = 0, place: tuple[str, str] | None = None) -> None:
        self.found.append((node.lineno, node.col_offset + shift, text,
                           *(place or self.scope[text])))

    def bind(self, name: str) -> bool:
        "The name means something else from here on: ours if this cell exports it."
        module = self.modules.get(self.exports_to)
        if self.depth == 0 and module and name in module.entries:
            self.scope[name] = (module.name, name)
            return True
        self.scope.pop(name, None)
        return False

    def inside(self, node, parts) -> None:
        "Visit `parts` of a function: its own names hide ours."
        outer, self.scope = self.scope, dict(self.scope)
        for part in ast.walk(node):
            if isinstance(part, ast.arg):
                self.scope.pop(part.arg, None)
            elif isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
                self.scope.pop(part.id, None)
        self.depth += 1
        for part in parts:
            self.visit(part)
        self.scope, self.depth = outer, self.depth - 1

    def visit_ImportFrom(self, node) -> None:
        whole = "minigpt." * (node.level == 1) + (node.module or "")
        module = whole.removeprefix("minigpt.")
        if whole.startswith("minigpt.") and module in self.modules and not node.level:
            self.link(node, whole, len("from "), (module, ""))
        for alias in node.names:
            name = alias.asname or alias.name
            home = signatures.shortcuts().get(alias.name) if whole == "minigpt" else module
            if home in self.modules and whole.startswith("minigpt") and \
                    alias.name in self.modules[home].entries:
                self.scope[name] = (home, alias.name)
                self.link(alias, alias.name, place=self.scope[name])
            else:
                self.scope.pop(name, None)

    def visit_FunctionDef(self, node) -> None:
        for part in (*node.decorator_list, node.args, node.returns):
            if part is not None:
                self.visit(part)
        if self.bind(node.name):
            self.link(node, node.name, len("def "))
        self.inside(node, node.body)

    def visit_ClassDef(self, node) -> None:
        for part in (*node.decorator_list, *node.bases):
            self.visit(part)
        if self.bind(node.name):
            self.link(node, node.name, len("class "))
        self.depth += 1
        for part in node.body:
            self.visit(part)
        self.depth -= 1

    def visit_Assign(self, node) -> None:
        for part in (node.value, *node.targets):    # the value is known before the name
            self.visit(part)

    def visit_Name(self, node) -> None:
        if not isinstance(node.ctx, ast.Load) and not self.bind(node.id):
            return
        if node.id in self.scope:
            self.link(node, node.id)

    def generic_visit(self, node) -> None:
        if isinstance(node, INNER):
            self.inside(node, ast.iter_child_nodes(node))
        else:
            super().generic_visit(node)


def find(code: str, scope: dict, exports_to: str = "") -> list[tuple]:
    "The links of a cell; code that is not plain Python has none."
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return []
    finder = Finder(scope, exports_to)
    finder.visit(tree)
    return first(finder.found)


def first(found: list[tuple]) -> list[tuple]:
    return list({link[2:]: link for link in sorted(found, reverse=True)}.values())[::-1]


def weave(markup: str, links: dict[tuple[int, int], tuple[str, str]]) -> str:
    "Put links into highlighted code: (line, column) -> (text, address)."
    done, line, column = [], 1, 0
    for part in re.split(r"(<[^>]*>)", markup):
        text = "" if part.startswith("<") else html.unescape(part)
        known, address = links.get((line, column), ("", ""))
        if text and text == known:
            part = f'<a class="api" href="{html.escape(address)}">{part}</a>'
        done.append(part)
        line += text.count("\n")
        column = len(text) - text.rfind("\n") - 1 if "\n" in text else column + len(text)
    return "".join(done)


def mark(app, doctree) -> None:
    "Give cells their place and their links; code in the prose is read as one text."
    scope = {}
    for cell in list(doctree.findall(nodes.container)):
        about = cell.get("cell_metadata") or {}
        if "tag_exported" in cell.get("classes", []):
            cell["ids"].append(f"cell-{about['cell']}")
        for block in cell.findall(nodes.literal_block) if "links" in about else []:
            if "cell_input" in block.parent.get("classes", []):
                block["links"] = about["links"]
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "python" and "links" not in block:
            block["links"] = find(block.rawsource or block.astext(), scope)


def literal_block(self, node) -> None:
    try:
        type(self).visit_literal_block(self, node)
    except nodes.SkipNode:
        uri = self.builder.get_relative_uri
        here = self.builder.current_docname
        links = {(line, column): (text, uri(here, f"minigpt/{module}") + (f"#{name}" * bool(name)))
                 for line, column, text, module, name in node.get("links", [])}
        if links:
            self.body[-1] = weave(self.body[-1], links)
        raise


def setup(app):
    app.connect("doctree-read", mark)
    app.add_node(nodes.literal_block, override=True, html=(literal_block, None))
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
