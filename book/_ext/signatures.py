"""What a module of the package offers, read from its source: the documentation in the signatures.

A parameter's comment `# (SHAPE) dtype meaning` stands on its line and may go on below it; the
return's comment stands on the line that ends the signature. Nothing is imported or run.
"""
import ast
import functools
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "minigpt"
CELL = re.compile(r"^# %% \.\./nbs/(\S+)\.ipynb #(\S+)$", re.M)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
KINDS = ("property", "classmethod", "staticmethod")     # decorators that Sphinx calls a kind


@dataclass
class Parameter:
    name: str
    type: str = ""
    default: str = ""           # as in the source; empty: it must be given
    meaning: str = ""


@dataclass
class Entry:
    name: str                   # of a member, with its class: GPT.forward
    kind: str                   # as Sphinx calls it: function, class, method, property, data, ...
    code: str                   # the source, decorators included
    line: int                   # where it begins in the module
    doc: str = ""
    call: str = ""              # how it is called: names and defaults, no types
    parameters: list[Parameter] = field(default_factory=list)
    returns: Parameter | None = None
    members: list["Entry"] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    cell: str = ""              # id of the notebook's cell


@dataclass
class Module:
    name: str
    doc: str
    notebook: str               # stem of the chapter that it is exported from
    entries: dict[str, Entry]   # by name, in the order of the source


class Reader:
    "Reads one module."

    def __init__(self, source: str):
        self.source, self.lines, self.tree = source, source.splitlines(), ast.parse(source)
        self.trailing, self.alone = {}, {}      # comments by line: behind code, on their own
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                kept = self.alone if token.line.lstrip().startswith("#") else self.trailing
                kept[token.start[0]] = token.string.lstrip("# ").strip()

    def comment(self, line: int, until: int) -> str:
        "The comment behind `line`, with the lines of comment that follow it before `until`."
        parts = [self.trailing.get(line, "")]
        while (line := line + 1) < until and line in self.alone:
            parts.append(self.alone[line])
        return " ".join(filter(None, parts))

    def parameters(self, node, end: int) -> list[Parameter]:
        a = node.args
        plain = a.posonlyargs + a.args
        pairs = [("", arg, default) for arg, default in
                 zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)]
        pairs += [("*", a.vararg, None)] if a.vararg else []
        pairs += [("", arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults)]
        pairs += [("**", a.kwarg, None)] if a.kwarg else []
        pairs = [p for p in pairs if p[1].arg not in ("self", "cls")]
        found = []
        for i, (star, arg, default) in enumerate(pairs):
            last = (default or arg).end_lineno
            following = pairs[i + 1][1].lineno if i + 1 < len(pairs) else end
            meaning = "" if last in (following, end) else self.comment(last, following)
            found.append(Parameter(star + arg.arg, self.text(arg.annotation), self.text(default),
                                   meaning))
        return found

    def text(self, node) -> str:
        "An expression as it is written; a type in quotes without them."
        if node is None:
            return ""
        lines = self.lines[node.lineno - 1:node.end_lineno]
        lines[-1] = lines[-1].encode()[:node.end_col_offset].decode()
        lines[0] = lines[0].encode()[node.col_offset:].decode()
        return " ".join(line.strip() for line in lines)

    def function(self, node, owner: str = "") -> Entry:
        decorators = [ast.unparse(d) for d in node.decorator_list]
        kind = next((d for d in decorators if d in KINDS), "method" if owner else "function")
        entry = self.entry(node, f"{owner}.{node.name}".lstrip("."), kind)
        end = self.header_end(node)
        entry.parameters = self.parameters(node, end)
        returns, meaning = self.text(node.returns), self.trailing.get(end, "")
        if meaning or returns not in ("", "None"):
            entry.returns = Parameter("returns", returns.strip("\"'"), meaning=meaning)
        shown = node.name if kind == "method" else entry.name
        entry.call = "".join(f"@{d}\n" for d in decorators if d not in KINDS)
        entry.call += call(shown, node.args, entry.parameters)
        return entry

    def header_end(self, node) -> int:
        "The line with the colon that ends a signature."
        depth, lines = 0, "\n".join(self.lines[node.lineno - 1:node.body[0].lineno]) + "\n"
        for token in tokenize.generate_tokens(io.StringIO(lines).readline):
            depth += (token.string in "([{") - (token.string in ")]}") if token.string else 0
            if token.string == ":" and depth == 0:
                return node.lineno + token.start[0] - 1
        raise ValueError(f"no end of the signature of {node.name}, line {node.lineno}")

    def fields(self, node) -> list[Parameter]:
        found = []
        for i, part in enumerate(node.body):
            if isinstance(part, ast.AnnAssign):
                following = node.body[i + 1].lineno if i + 1 < len(node.body) else 10**9
                found.append(Parameter(part.target.id, self.text(part.annotation),
                                       self.text(part.value),
                                       self.comment(part.end_lineno, following)))
        return found

    def klass(self, node) -> Entry:
        bases = [ast.unparse(b) for b in node.bases]
        entry = self.entry(node, node.name, "exception" if any(
            b.endswith(("Error", "Exception")) for b in bases) else "class")
        entry.parameters, entry.bases = self.fields(node), bases
        for part in node.body:
            if not isinstance(part, FUNCTION) or any(
                    ast.unparse(d) == f"{part.name}.setter" for d in part.decorator_list):
                continue                             # a property's setter has its getter's entry
            if part.name == "__init__":
                made = self.function(part)
                entry.parameters = made.parameters
                entry.call = call(node.name, part.args, made.parameters)
            elif not part.name.startswith("_") or (part.name != "__post_init__"
                                                   and ast.get_docstring(part)):
                entry.members.append(self.function(part, node.name))
        return entry

    def entry(self, node, name: str, kind: str) -> Entry:
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        doc = ast.get_docstring(node) if isinstance(node, (*FUNCTION, ast.ClassDef)) else ""
        return Entry(name, kind, "\n".join(self.lines[start - 1:node.end_lineno]), start, doc or "")

    def module(self, name: str) -> Module:
        public, entries = [], {}
        cells = [(self.source.count("\n", 0, m.start()) + 1, m) for m in CELL.finditer(self.source)]
        for node in self.tree.body:
            made = []
            if isinstance(node, FUNCTION):
                made = [self.function(node)]
            elif isinstance(node, ast.ClassDef):
                made = [self.klass(node)]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                if names == ["__all__"] and isinstance(node.value, ast.List):
                    public = ast.literal_eval(node.value)
                made = [self.entry(node, n, "data") for n in names]
            for entry in made:
                entry.cell = next((m[2] for at, m in reversed(cells) if at < entry.line), "")
                entries[entry.name] = entry
        return Module(name, ast.get_docstring(self.tree) or "", cells[0][1][1] if cells else "",
                      {n: e for n, e in entries.items() if n in public})


def call(name: str, arguments: ast.arguments, parameters: list[Parameter]) -> str:
    "`name(a, b=1)`: one line, or a line for each argument where that is too long."
    parts = [f"{p.name}={p.default}" if p.default else p.name for p in parameters]
    if arguments.kwonlyargs and not arguments.vararg:
        names = [p.name for p in parameters]
        parts.insert(names.index(arguments.kwonlyargs[0].arg), "*")
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= 76 else f"{name}(\n    " + ",\n    ".join(parts) + ",\n)"


def read(source: str, name: str) -> Module:
    return Reader(source).module(name)


@functools.cache
def load(path: Path, changed: int) -> Module:
    return read(path.read_text(encoding="utf-8"), path.stem)


def modules() -> dict[str, Module]:
    "The modules that chapters export, in the book's order."
    paths = (p for p in PACKAGE.glob("*.py") if not p.name.startswith("_"))
    found = [load(p, p.stat().st_mtime_ns) for p in paths]
    return {m.name: m for m in sorted(found, key=lambda m: (m.notebook, m.name))}


def shortcuts() -> dict[str, str]:
    "What `minigpt` itself offers: the name, and the module that it comes from."
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                and getattr(n.targets[0], "id", "") == "_HOME")
