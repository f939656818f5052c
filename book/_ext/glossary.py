"""The glossary: made from every chapter's section "The words", and linked from the prose.

A list item may explain several words: `**Query** and **key**: ...`, or one after another:
`**Corpus**: a collection of texts. **Seed**: the number ...`. A word in bold that stands inside
of another's explanation is explained by it too.
"""
import functools
import re
from dataclasses import dataclass
from html import escape
from itertools import groupby

import katex_math
import run
from docutils import nodes
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from reference import link, paragraph
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

PAGE = "book/glossary"
MOST = 12       # links on a page: prose stays prose
SECTION = re.compile(r"^## The words\s*\n(.*?)(?=^#|\Z)", re.M | re.S)
ITEM = re.compile(r"^[-*] (.*(?:\n[ \t]+\S.*)*)", re.M)
CITATION = re.compile(r"\s*\{cite:\w+\}`[^`]*`")
LINK = re.compile(r"\[([^\]]*)\]\([^)\s]*\)")      # its address is seen from another page
LEAD = re.compile(r"(?:^|(?<=\. )|(?<=\.\) ))(\*\*[^*]+\*\*[^:.]*):\s+")
BOLD = re.compile(r"\*\*([^*]+)\*\*")
LEANS = re.compile(r"\b(its|them|there|one|many|both)\b")     # says little without its neighbours
ALIAS = re.compile(r"\(([A-Za-z]*[A-Z]{2,}\w*|[A-Z][a-z]*[A-Z]+\w*)\)|\bor \*([^*]+)\*")
# Plain English, or another matter elsewhere: linked in the chapters that explain them only.
EVERYDAY = set("""
    acceptance backend beam bias bits block capacity chances cosine decode decoder document draft
    dropped encoder family flush frequency fused gate grammar greedy head hub index judge key layout
    load mask memory merge overhead packing pattern position proposal pruning rank recipe
    residual schedule score seed shard source step streaming surprise target tile transposed
    trapezoid value weights window
    """.split())
# In every sentence, or on every page: linked nowhere.
NEVER = set("byte choice fact gpt id mean option place process rule run theta".split())
QUIET = (nodes.title, nodes.rubric, nodes.reference, nodes.literal, nodes.literal_block,
         nodes.math, nodes.caption, nodes.legend, nodes.figure, nodes.table, nodes.term,
         nodes.block_quote, nodes.footnote, nodes.Admonition, addnodes.pending_xref)


@dataclass(frozen=True)
class Meaning:
    terms: tuple[str, ...]      # the words that it explains
    lead: str                   # what stands before the colon; empty: it is in the text
    text: str                   # what stands behind it; Markdown
    chapter: str                # docname

    @property
    def whole(self) -> str:
        return f"{self.lead}: {self.text}" if self.lead else self.text


def names(lead: str, text: str) -> tuple[str, ...]:
    "The words that an explanation explains, other names in brackets among them."
    tail = re.search(r"\*\* (\w+)$", lead)      # **total** and **active** parameters
    found = [f"{term} {tail[1]}" if tail else term for term in BOLD.findall(lead)]
    found += [a or b for a, b in ALIAS.findall(lead)] + BOLD.findall(text)
    return tuple(dict.fromkeys(found))


def explain(item: str, chapter: str) -> list[Meaning]:
    "The explanations of one list item; an item without a bold word before a colon has none."
    item = " ".join(LINK.sub(r"\1", CITATION.sub("", item)).split())
    leads = list(LEAD.finditer(item))
    found = []
    for lead, after in zip(leads, [*leads[1:], None]):
        text = item[lead.end():after.start() if after else None].strip()
        terms = names(lead[1], text)
        if found and LEANS.search(text):
            found.append(Meaning(terms, "", item, chapter))
        else:
            found.append(Meaning(terms, lead[1], text, chapter))
    return found


def collect() -> list[Meaning]:
    "Every explanation of the book, in its order."
    found = []
    for path in run.chapters():
        for cell in run.load(path).cells:
            section = SECTION.search(cell.source) if cell.cell_type == "markdown" else None
            for item in ITEM.findall(section[1]) if section else []:
                found += explain(item, f"nbs/{path.stem}")
    return found


def by_term(meanings: list[Meaning]) -> dict[str, list[Meaning]]:
    found = {}
    for meaning in meanings:
        for term in meaning.terms:
            found.setdefault(term.lower(), []).append(meaning)
    return found


def anchor(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower()).strip("-")


def choose(meanings: list[Meaning], chapter: str) -> Meaning:
    "The meaning of this chapter, else the last one before it, else the first one after."
    before = [m for m in meanings if m.chapter <= chapter]
    return before[-1] if before else meanings[0]


def pattern(term: str, shown: str) -> str:
    "Matches a word and its plural; abbreviations only in capitals."
    text = re.escape(term)
    if re.search(r"[A-Z]{2}", shown):
        return re.escape(shown) + "s?"
    text = rf"(?:{text}|{re.escape(term[:-1])}ies)" if term.endswith("y") else f"{text}(?:e?s)?"
    return f"(?i:{text})"


class Linker:
    "Links the first occurrence of each term on a page."

    def __init__(self, terms: dict[str, list[Meaning]], chapter: str):
        self.chapter, self.used = chapter, {}
        self.terms = {t: m for t, m in terms.items() if t not in NEVER and (
            t not in EVERYDAY or any(one.chapter == chapter for one in m))}
        shown = {t: next(n for n in m[0].terms if n.lower() == t) for t, m in self.terms.items()}
        longest = sorted(self.terms, key=len, reverse=True)
        groups = "|".join(f"({pattern(t, shown[t])})" for t in longest)
        self.order, self.words = longest, re.compile(rf"(?<![\w-])(?:{groups})(?![\w-])")

    def speaks(self, text: nodes.Text) -> bool:
        "Whether this is prose, outside of the section that explains the words."
        inside, node = False, text.parent
        while node is not None:
            if isinstance(node, QUIET) or "cell" in node.get("classes", []):
                return False
            if isinstance(node, nodes.section) and node[0].astext() == "The words":
                return False
            inside |= isinstance(node, nodes.paragraph)
            node = node.parent
        return inside

    def link(self, doctree: nodes.document, address: str) -> dict[str, Meaning]:
        "Change the tree; return what was linked."
        for text in list(doctree.findall(nodes.Text)):
            if len(self.used) < MOST and self.speaks(text):
                parts = list(self.parts(text.astext(), address))
                if len(parts) > 1:
                    text.parent.replace(text, parts)
        return self.used

    def parts(self, text: str, address: str):
        at = 0
        for match in self.words.finditer(text):
            term = self.order[match.lastindex - 1]
            meaning = choose(self.terms[term], self.chapter)
            if meaning in self.used.values() or len(self.used) == MOST:
                continue
            self.used[term] = meaning
            yield nodes.Text(text[at:match.start()])
            yield nodes.reference("", match[0], refuri=f"{address}#{anchor(term)}", internal=True,
                                  classes=["term"])
            at = match.end()
        yield nodes.Text(text[at:])


@functools.cache
def markdown() -> MarkdownIt:
    return MarkdownIt().use(dollarmath_plugin, allow_space=False, renderer=lambda latex, options:
                            katex_math.typeset(latex, options["display_mode"]))


def tips(used: dict[str, Meaning], chapter: str, titles: dict[str, str]) -> str:
    "The explanations that a page shows, each once: book/_static/glossary.js brings them up."
    found = ""
    for term, meaning in used.items():
        where = "" if meaning.chapter == chapter else \
            f"<p>Chapter {escape(titles[meaning.chapter])}</p>"
        found += (f'<div data-term="{anchor(term)}"><p>{markdown().renderInline(meaning.whole)}</p>'
                  f"{where}</div>")
    return f'<template id="glossary-tips">{found}</template>' if found else ""


class Words(SphinxDirective):
    "`{words}`: all terms, by their first letter."

    def run(self) -> list[nodes.Node]:
        terms, sections = by_term(collect()), []
        for path in run.chapters():
            self.env.note_dependency(str(path))
        for letter, group in groupby(sorted(terms), key=lambda t: t[0].upper()):
            table = nodes.definition_list(classes=["words"])
            for term in group:
                shown = next(n for n in terms[term][0].terms if n.lower() == term)
                name = nodes.term("", shown[0].upper() + shown[1:] if shown.islower() and
                                  len(shown) > 2 else shown, ids=[anchor(term)])
                table += nodes.definition_list_item("", name, nodes.definition(
                    "", *map(functools.partial(self.meaning, term), terms[term])))
            sections.append(nodes.section("", nodes.title("", letter), table,
                                          ids=[f"letter-{letter.lower()}"]))
        return sections

    def meaning(self, term: str, meaning: Meaning) -> nodes.paragraph:
        alone = meaning.lead.lower() == f"**{term}**"
        text = meaning.text if alone else meaning.whole
        parsed = self.parse_text_to_nodes(text[0].upper() + text[1:])
        return paragraph(*parsed[0].children, nodes.Text(" ("), link(meaning.chapter),
                         nodes.Text(")"))


def link_terms(app, doctree, docname: str) -> None:
    other = (PAGE, "book/api", "book/references", app.config.root_doc)
    if app.builder.format != "html" or docname in other or docname.startswith("minigpt/"):
        return
    used = Linker(by_term(collected()), docname).link(
        doctree, app.builder.get_relative_uri(docname, PAGE))
    titles = {name: title.astext() for name, title in app.env.titles.items()}
    if used:
        doctree += nodes.raw("", tips(used, docname, titles), format="html")


@functools.cache
def collected() -> list[Meaning]:
    return collect()


def script(app, pagename, template, context, doctree) -> None:
    if doctree and any("glossary-tips" in raw.astext() for raw in doctree.findall(nodes.raw)):
        app.add_js_file("glossary.js", loading_method="defer")


def setup(app):
    app.add_directive("words", Words)
    app.add_css_file("glossary.css")
    app.connect("builder-inited", lambda app: collected.cache_clear())
    app.connect("doctree-resolved", link_terms)
    app.connect("html-page-context", script)
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
