"""Every chapter has a level: it is on the tour, or deeper, or an engine room.

The line of minutes under its title says which: `*Deeper. Reading: 12 minutes. ...*`, and without
such a word it is on the tour. The contents mark the other two, their own pages say what they are,
and *previous* and *next* on the tour pass them by.
"""
import functools
import re
from dataclasses import dataclass

import run
from docutils import nodes
from reference import paragraph
from sphinx.util.docutils import SphinxRole

LINE = re.compile(r"^\*(?P<word>.*?)Reading: (?P<minutes>\d+) minutes\b", re.M)
ENTRY = re.compile(r'(<a class="[^"]*reference internal" href="([^"]*)">.*?)(?=</a>)', re.S)
PREVIOUS, NEXT = 1, 2       # where Sphinx keeps a page's neighbours in the order of the contents


@dataclass(frozen=True)
class Level:
    word: str               # as a chapter's line begins with it
    icon: str = ""          # a sign of the theme's icon font
    says: str = ""          # what its chapters' own pages say


TOUR = Level("")
DEEPER = Level("Deeper", "fa-angles-down", "For those who want it.")
ENGINE_ROOM = Level("Engine room", "fa-gears", "How the library does it; nothing later needs it.")
LEVELS = {"tour": TOUR, "deeper": DEEPER, "engine room": ENGINE_ROOM}


@dataclass(frozen=True)
class Chapter:
    level: Level
    minutes: int            # of reading


# ---- what chapters say --------------------------------------------------------------------------
def parse(cell: str, name: str) -> Chapter:
    "What the first cell of a chapter says; a draft without minutes is on the tour."
    line = LINE.search(cell)
    if line is None:
        return Chapter(TOUR, 0)
    begins = {f"{one.word}. " if one.word else "": one for one in LEVELS.values()}
    if line["word"] not in begins:
        known = ", ".join(f"`*{word}Reading: ...`" for word in begins)
        raise ValueError(f"nbs/{name}.ipynb: `*{line['word']}Reading: ...` names no level; "
                         f"write one of {known}")
    return Chapter(begins[line["word"]], int(line["minutes"]))


@functools.cache
def chapters() -> dict[str, Chapter]:
    "Every chapter of the book by the name of its page."
    found = {}
    for path in run.chapters():
        cells = run.load(path).cells
        found[f"nbs/{path.stem}"] = parse(cells[0].source if cells else "", path.stem)
    return found


def level(page: str) -> Level:
    "The level of a page; pages that are no chapters are on everybody's way."
    return chapters()[page].level if page in chapters() else TOUR


def along_the_tour(relations: dict, page: str, direction: int) -> str | None:
    "The nearest page on the tour in that direction."
    page = relations[page][direction]
    while page and level(page) is not TOUR:
        page = relations[page][direction]
    return page


def reading(names: str) -> str:
    "How many chapters are of these levels, as in `tour and deeper`, and how long they take."
    levels = [LEVELS[name] for name in names.split(" and ")]
    minutes = [chapter.minutes for chapter in chapters().values() if chapter.level in levels]
    hours = round(sum(minutes) / 30) / 2
    return f"{len(minutes)} chapters, about {hours:g} hour{'s' * (hours != 1)} of reading"


class Reading(SphinxRole):
    "{reading}`tour and deeper` is as long as these chapters are today."

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        for path in run.chapters():
            self.env.note_dependency(str(path))
        return [nodes.Text(reading(self.text))], []


# ---- what pages show ----------------------------------------------------------------------------
def introduce(app, doctree, docname: str) -> None:
    "On a page off the tour, a line of its own says what it is and where the tour goes on."
    if app.builder.format != "html" or level(docname) is TOUR:
        return
    here, relations = level(docname), app.builder.relations
    line = next(node for node in doctree.findall(nodes.emphasis)
                if node.astext().startswith(f"{here.word}. Reading: "))
    line[0] = nodes.Text(line[0].removeprefix(f"{here.word}. "))    # the badge says it
    tour, says = along_the_tour(relations, docname, NEXT), "The tour goes on with "
    if tour not in chapters():
        tour, says = along_the_tour(relations, docname, PREVIOUS), "The tour has ended with "
    title = nodes.reference("", app.env.titles[tour].astext(), internal=True,
                            refuri=app.builder.get_relative_uri(docname, tour))
    section, place = line.parent.parent, line.parent.parent.index(line.parent)
    section.insert(place, paragraph(
        nodes.strong("", here.word, classes=["level-badge"]),
        nodes.Text(f" {here.says} {says}"), title, nodes.Text("."), classes=["level"]))


def mark(here: Level) -> str:
    "A sign, and the word for those who cannot see it."
    return (f'<span class="level-mark" title="{here.word}">{sign(here)}'
            f'<span class="visually-hidden"> ({here.word.lower()})</span></span>')


def sign(here: Level) -> str:
    return f'<i class="fa-solid {here.icon}" aria-hidden="true"></i>'


def legend() -> str:
    words = (f"<span>{sign(one)} {one.word.lower()}</span>" for one in (DEEPER, ENGINE_ROOM))
    return f'<p class="level-legend">{" ".join(words)}</p>'


def marked(contents: str, marks: dict[str, str]) -> str:
    "A list of links with a mark behind each title that has one, by address."
    return ENTRY.sub(lambda m: m[1] + marks.get(m[2], ""), contents)


def mark_contents(app, pagename, templatename, context, doctree) -> None:
    tree = context["generate_toctree_html"]
    marks = {app.builder.get_relative_uri(pagename, page) or "#": mark(chapter.level)
             for page, chapter in chapters().items() if chapter.level is not TOUR}
    context["generate_toctree_html"] = lambda *args, **options: \
        marked(str(tree(*args, **options)), marks) + legend()


def pass_by(app, pagename, templatename, context, doctree) -> None:
    "Let *previous* and *next* on the tour lead along the tour."
    relations = app.builder.relations
    if pagename not in relations or level(pagename) is not TOUR:
        return
    for name, direction in (("prev", PREVIOUS), ("next", NEXT)):
        page = along_the_tour(relations, pagename, direction)
        context[name] = page and {
            "link": app.builder.get_relative_uri(pagename, page),
            "title": app.builder.render_partial(app.env.titles[page])["title"]}


def refresh(app) -> None:
    chapters.cache_clear()
    chapters()              # an unknown word ends the build before anything is read


def outdated(app, env) -> list[str]:
    "Every page shows the levels: when one changes, all are written again."
    before, env.levels = getattr(env, "levels", None), chapters()
    return [] if before in (None, env.levels) else list(env.found_docs)


def setup(app):
    app.add_role("reading", Reading())
    app.add_css_file("levels.css")
    app.connect("builder-inited", refresh)
    app.connect("env-updated", outdated)
    app.connect("doctree-resolved", introduce, priority=600)    # no word of it is a glossary's
    app.connect("html-page-context", pass_by)
    app.connect("html-page-context", mark_contents, priority=950)   # after the folds got names
    return {"parallel_read_safe": True, "parallel_write_safe": True}
