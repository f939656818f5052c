"""The still picture of a graph of numbers: values and slopes from minigpt.autograd, in the places
that graph.js would give them (tests/test_page.py compares)."""
import ast
import html

from minigpt.autograd import Value

WIDE, HIGH, GAP, FAN, EDGE = 112, 58, 62, 22, 8
SIGNS = {ast.Add: "+", ast.Mult: "*", ast.Sub: "-", ast.Div: "/"}


def called(node: Value, op: str = "", name: str = "") -> Value:
    "A value that knows how it was made, for the picture."
    node.op, node.name = op, name
    return node


def read(text: str) -> Value:
    "The result of `d = a * b; d * d; a = 2; b = 3`, after `backward`."
    known: dict[str, Value] = {}

    def visit(node: ast.expr) -> Value:
        match node:
            case ast.Constant():
                return called(Value(node.value))
            case ast.Name():
                return known.setdefault(node.id, called(Value(1), name=node.id))
            case ast.UnaryOp(op=ast.USub()):
                inside = visit(node.operand)
                if not inside.name and not inside.made_of:
                    return called(Value(-inside.data))
                return called(inside * called(Value(-1)), "*")
            case ast.BinOp(op=ast.Pow()):
                n = ast.literal_eval(node.right)
                return called(visit(node.left) ** n, f"** {n}")
            case ast.BinOp():
                left, right, sign = visit(node.left), visit(node.right), SIGNS[type(node.op)]
                if sign == "-":
                    right = called(right * called(Value(-1)), "*")
                if sign == "/":
                    right = called(right ** -1, "** -1")
                return called(left + right, "+") if sign in "+-" else called(left * right, "*")
            case ast.Call():
                return called(getattr(visit(node.args[0]), node.func.id)(), node.func.id)
        raise ValueError(f"the graph has no place for {ast.unparse(node)!r}")

    def is_given(line: ast.stmt) -> bool:
        try:
            return isinstance(line, ast.Assign) and bool(repr(ast.literal_eval(line.value)))
        except ValueError:
            return False

    for line in sorted(ast.parse(text).body, key=is_given, reverse=True):    # the letters first
        root = visit(line.value)
        if isinstance(line, ast.Assign):
            root.name = root.name or line.targets[0].id
            known[line.targets[0].id] = root
    root.backward()
    return root


class Place:
    "Where a value stands, or where a line passes by a column."

    def __init__(self, level: int, node: Value | None = None):
        self.level, self.node, self.y, self.size = level, node, 0.0, 1 if node else 0.5
        self.before, self.after, self.passing = [], [], {}


def layout(root: Value) -> tuple[dict[int, Place], list[dict], list[list[Place]]]:
    "As `layout` in graph.js: places by the id of their value, lines, columns."
    order, lines, steps = root.walk()[::-1], [], {}
    for node in order:
        steps[id(node)] = 1 + max((x["steps"] for x in lines if x["part"] is node), default=-1)
        lines += [dict(node=node, part=part, slope=slope, slot=slot, steps=steps[id(node)])
                  for slot, (part, slope) in enumerate(node.made_of)]
    last = max(steps.values())
    places = {id(node): Place(last - steps[id(node)], node) for node in order}
    columns: list[list[Place]] = [[] for _ in range(last + 1)]

    def join(a: Place, b: Place) -> Place:
        a.after.append(b)
        b.before.append(a)
        return b

    for place in places.values():
        columns[place.level].append(place)
        for line in (x for x in lines if x["node"] is place.node):
            way = line["way"] = [places[id(line["part"])]]
            for level in range(way[0].level + 1, place.level):
                if level not in way[0].passing:
                    way[0].passing[level] = join(way[-1], Place(level))
                    columns[level].append(way[0].passing[level])
                way.append(way[0].passing[level])
            way.append(join(way[-1], place))
    for column in columns:
        for row, place in enumerate(column):
            place.y = row
    for _ in range(8):
        for column in columns:
            settle(column, "before")
        for column in columns[::-1]:
            settle(column, "after")
    for column in columns:
        settle(column, "before")
    top = min(place.y for column in columns for place in column)
    for column in columns:
        for place in column:
            place.y -= top
    return places, lines, columns


def settle(column: list[Place], side: str) -> None:
    "Each place of a column as near as it can be to the middle of its neighbours on one side."
    for place in column:
        near = [other.y for other in getattr(place, side)]
        place.wants = sum(near) / len(near) if near else place.y
    column.sort(key=lambda place: place.wants)
    blocks, room = [], 0.0                                   # places that touch move together
    for n, place in enumerate(column):
        room += (column[n - 1].size + place.size) / 2 if n else 0
        place.y = room
        total, places = place.wants - room, [place]
        while blocks and blocks[-1][0] / len(blocks[-1][1]) > total / len(places):
            above = blocks.pop()
            total, places = above[0] + total, above[1] + places
        blocks.append((total, places))
    for total, places in blocks:
        for place in places:
            place.y += total / len(places)


def plain(x: float) -> str:
    "A number for a small box: four digits or so."
    size = abs(x)
    if size >= 1e5 or 0 < size < 1e-4:
        said = f"{x:.2e}".replace("e+0", "e+").replace("e-0", "e-")
    else:
        said = f"{x:.3g}" if size < 1 else f"{x:.{max(0, 4 - len(str(int(size))))}f}"
        said = said.rstrip("0").rstrip(".") if "." in said else said
    return said.replace("-", "−")


def formula(node: Value) -> str:
    "The one operation that made a value; a part that has neither name nor number is …"
    parts = [part.name or ("…" if part.made_of else f"({plain(part.data)})" if part.data < 0
                           else plain(part.data)) for part, _ in node.made_of]
    if len(parts) == 2:
        return f" {node.op} ".join(parts)
    minus = node.op.replace("-", "−")
    return f"{parts[0]} {minus}" if minus.startswith("**") else f"{minus}({parts[0]})"


def graph(text: str) -> str:
    places, lines, columns = layout(root := read(text))
    drawn, labels, said = [], [], []

    def at(place: Place) -> tuple[float, float]:
        return (EDGE + WIDE / 2 + place.level * (WIDE + GAP),
                EDGE + HIGH / 2 + place.y * (HIGH + 10))

    def write(x: float, y: float, words: str, name: str = "") -> str:
        return f'<text x="{x:g}" y="{y:g}" text-anchor="middle" class="{name}">{words}</text>'

    for line in lines:
        way, port, bow = line["way"], 0.0, 0.0
        for other in lines:
            if other["node"] is line["node"] and other["slot"] != line["slot"]:
                below = (way[-2].y - other["way"][-2].y or line["slot"] - other["slot"]) > 0
                port = FAN / 2 if below else -FAN / 2
                bow = 2 * port if other["part"] is line["part"] else 0.0
        (x, y), d = at(way[0]), ""
        for stop in way[1:]:
            to, w = at(stop)
            last = stop is way[-1]
            w, bent = (w + port, bow) if last else (w, 0.0)
            x, end = x + WIDE / 2, to - WIDE / 2
            middle, height = (x + end) / 2, (y + w) / 2 + 0.75 * bent
            d += (f"{'L' if d else 'M'}{x:g} {y:g}C{middle:g} {y + bent:g} {middle:g} {w + bent:g} "
                  f"{end:g} {w:g}")
            x, y = to, w
        drawn.append(f'<path class="graph-line" d="{d}"/><path class="graph-tip" d="M{end:g} {w:g}'
                     f'l-8 -4.5v9z"/>')
        labels.append(write(middle, height + 4, f"×\u2009{plain(line['slope'])}", "graph-by"))
    for place in places.values():
        (x, y), node = at(place), place.node
        made = html.escape(formula(node)) if node.made_of else ""
        bold = f'<tspan font-weight="bold">{node.name}</tspan>' if node.name else ""
        head = " = ".join(filter(None, (bold, made))) or "number"
        leaf = "" if node.made_of else " graph-leaf"
        drawn.append(
            f'<g class="graph-value{leaf}"><rect x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}" '
            f'width="{WIDE}" height="{HIGH}" rx="8"/>{write(x, y - 11, head)}'
            f'{write(x, y + 6, f"= {plain(node.data)}")}'
            f'{write(x, y + 23, f"slope {plain(node.grad)}", "graph-slope")}</g>')
        said.append(f"{node.name or made or 'a number'} is {plain(node.data)}, its slope "
                    f"{plain(node.grad)}")
    wide = 2 * EDGE + len(columns) * (WIDE + GAP) - GAP
    rows = max(place.y for column in columns for place in column)
    high = 2 * EDGE + HIGH + rows * (HIGH + 10)
    shown = "; ".join(line.strip() for line in text.split(";"))
    return (f'<p class="live-text">{html.escape(shown)}</p><div class="graph-view" tabindex="0" '
            f'role="group" aria-label="The graph"><svg width="{wide:g}" height="{high:g}" '
            f'viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="'
            f'{html.escape("; ".join(said))}.">{"".join(drawn + labels)}</svg></div>')
