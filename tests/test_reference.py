"Laws of the API reference, of the links in code and of the glossary, before any page is built."
import ast
import re
from html import unescape
from pathlib import Path

import codelinks
import glossary
import nbformat
import pytest
import reference
import signatures
import yaml
from docutils import nodes
from docutils.utils import new_document

ROOT = Path(__file__).resolve().parent.parent

MODULES = signatures.modules()
SAMPLE = '''"""A module.

It has # no comment here."""

# %% auto #0
__all__ = ['TEXT', 'Shape', 'mix', 'Layer']

# %% ../nbs/99_sample.ipynb #text
TEXT = """
# %% ../nbs/98_false.ipynb #false
def no(): pass
"""

# %% ../nbs/99_sample.ipynb #shape
@dataclass(frozen=True)
class Shape:
    "Two sizes."
    width: int = 4          # W: how wide,
                            # in numbers
    name: str = "a # b"     # what it is called

    @property
    def area(self) -> int:  # numbers in all
        "The area."
        return self.width

# %% ../nbs/99_sample.ipynb #mix
@torch.no_grad()
def mix(
    a: "Shape",                             # (B, T) int64 first
    b: dict[str, int] = {"x": 1, "y": 2},   # not `a`,
                                            # but second
    *rest: int,
    scale=1_000.0,                          # a factor: 1 changes nothing
    **more,
) -> "Shape":                               # (B, T) both
    """Mix two.

    A ValueError says # why."""
    def inner(q): return q

class Layer(nn.Module):
    def __init__(self, cfg: Shape): super().__init__()
    def __call__(self, x):
        "Documented."
    def _private(self): pass
    @classmethod
    def load(cls, path): "Read."
'''


def rows(entry: signatures.Entry) -> list[tuple[str, str, str, str]]:
    return [(p.name, p.type, p.default, p.meaning) for p in entry.parameters]


# ---- what the package offers -------------------------------------------------------------------
def test_every_public_name_has_an_entry():
    for module in MODULES.values():
        tree = ast.parse((ROOT / "minigpt" / f"{module.name}.py").read_text(encoding="utf-8"))
        public = next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                      and n.targets[0].id == "__all__")
        assert public and set(public) == set(module.entries), module.name
    shortcuts = signatures.shortcuts()
    assert shortcuts["GPT"] == "model"
    assert all(name in MODULES[module].entries for name, module in shortcuts.items())


def test_the_contents_list_every_module_in_the_books_order():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [f for part in contents["parts"] for f in part["chapters"]]
    listed = next(f["sections"] for f in files if f["file"] == "book/api")
    assert [f["file"] for f in listed] == [f"minigpt/{name}" for name in MODULES]
    assert "book/glossary" in [f["file"] for f in files]


def test_every_entry_leads_to_an_exported_cell():
    for module in MODULES.values():
        nb = nbformat.read(ROOT / "nbs" / f"{module.notebook}.ipynb", as_version=4)
        exported = {c.id for c in nb.cells if c.source.lstrip().startswith("#| export")}
        assert {e.cell for e in module.entries.values()} <= exported, module.name


def test_comments_of_known_functions_are_found_exactly():
    attend = MODULES["attention"].entries["attend"]
    assert rows(attend) == [
        ("q", "Tensor", "", "(B, H, T, Dh) what each token is looking for"),
        ("k", "Tensor", "", "(B, H, S, Dh) what each token offers; S > T with a cache"),
        ("v", "Tensor", "", "(B, H, S, Dh) what each token says if chosen")]
    assert attend.returns.type == "tuple[Tensor, Tensor]"
    assert attend.returns.meaning == \
        "(B, H, T, Dh) the blend; (B, H, T, S) weights, each row sums to 1"
    config = MODULES["config"].entries["ModelConfig"]
    assert rows(config)[0] == \
        ("vocab_size", "int", "2048", "V: how many different tokens there are")
    assert ("norm_eps", "float", "1e-5", "keeps a norm from dividing by zero") in rows(config)
    head = next(m for m in config.members if m.name == "ModelConfig.d_head")
    assert (head.kind, head.returns.meaning) == \
        ("property", "Dh: the eighth number follows from two others")
    assert MODULES["tokenizer"].entries["cut_long"].call == "cut_long(text, size=100_000)"


def test_decorators_dataclasses_strings_and_all_kinds_of_arguments():
    module = signatures.read(SAMPLE, "sample")
    text, shape, mix, layer = module.entries.values()
    assert (module.notebook, text.kind, text.cell) == ("99_sample", "data", "text")
    assert text.code.endswith('pass\n"""')
    assert rows(shape) == [("width", "int", "4", "W: how wide, in numbers"),
                           ("name", "str", '"a # b"', "what it is called")]
    assert shape.code.startswith("@dataclass(frozen=True)\nclass Shape")
    assert shape.members[0].returns.meaning == "numbers in all"
    assert rows(mix) == [
        ("a", '"Shape"', "", "(B, T) int64 first"),
        ("b", "dict[str, int]", '{"x": 1, "y": 2}', "not `a`, but second"),
        ("*rest", "int", "", ""), ("scale", "", "1_000.0", "a factor: 1 changes nothing"),
        ("**more", "", "", "")]
    assert (mix.returns.type, mix.returns.meaning) == ("Shape", "(B, T) both")
    assert mix.call == ('@torch.no_grad()\nmix(a, b={"x": 1, "y": 2}, *rest, scale=1_000.0, '
                        "**more)")
    assert mix.doc.endswith("A ValueError says # why.") and mix.cell == "mix"
    assert (layer.call, layer.bases, rows(layer)) == \
        ("Layer(cfg)", ["nn.Module"], [("cfg", "Shape", "", "")])
    assert [(m.name, m.kind) for m in layer.members] == \
        [("Layer.__call__", "method"), ("Layer.load", "classmethod")]


def test_prose_shows_code_and_links_names():
    text, name, rest = reference.prose("as `attend` takes `x*y*z`", {"attend": "attention"})[:3]
    assert (text, rest) == ("as ", " takes ")
    assert name[0]["place"] == ("minigpt/attention", "attend")
    assert reference.prose("2*pi*theta", {}) == [nodes.Text("2*pi*theta")]


# ---- links in code -----------------------------------------------------------------------------
def linked(*cells: str, exports_to: str = "") -> list[list[str]]:
    scope = {}
    return [[link[2] for link in codelinks.find(cell, scope, exports_to)] for cell in cells]


def test_imported_names_are_links_once_a_cell():
    assert linked("from minigpt.attention import attend", "attend(attend(1))", "rotate(1)") == \
        [["minigpt.attention", "attend"], ["attend"], []]
    assert linked("from minigpt import GPT", "GPT") == [["GPT"], ["GPT"]]
    assert linked("from torch import attend", "attend") == [[], []]


@pytest.mark.parametrize("code", [
    "attend = 3\nattend", "def attend(): pass\nattend", "def f(attend): return attend",
    "[attend for attend in []]", "lambda attend: attend", "x.attend", "f(attend=1)", '"attend"',
    "def f():\n    attend = 1\n    return attend", "%time attend(1)"])
def test_another_thing_of_the_same_name_is_no_link(code):
    assert linked("from minigpt.attention import attend", code)[1] == []


def test_what_is_local_to_a_function_hides_nothing_outside():
    assert linked("from minigpt.attention import attend",
                  "def f(attend): pass\n[attend for attend in []]\nattend")[1] == ["attend"]


def test_a_draft_hides_a_name_and_the_exported_cell_gives_it_back():
    scope = {}
    assert codelinks.find("def attend(): pass", scope) == []
    assert codelinks.find("def attend(): pass", scope, "attention") == \
        [(1, 4, "attend", "attention", "attend")]
    assert codelinks.find("attend()", scope) == [(1, 0, "attend", "attention", "attend")]


def test_links_leave_the_text_of_the_code_alone():
    code = 'x = "<é>"\ny = attend(x)  # attend & co\n'
    markup = ('<pre><span class="n">x</span> = <span class="s">&quot;&lt;é&gt;&quot;</span>\n'
              '<span>y</span> = <span class="n">attend</span>(x)  # attend &amp; co\n</pre>')
    woven = codelinks.weave(markup, {(2, 4): ("attend", "a.html#attend"), (1, 2): ("no", "n")})
    assert woven.count("<a ") == 1 and '<a class="api" href="a.html#attend">attend</a>' in woven
    assert unescape(re.sub("<[^>]*>", "", woven)) == code


# ---- the glossary ------------------------------------------------------------------------------
MEANINGS = glossary.collect()
TERMS = glossary.by_term(MEANINGS)


def test_every_chapter_with_a_list_of_words_is_in_the_glossary():
    explained = {m.chapter for m in MEANINGS}
    silent = {p.stem for p in glossary.run.chapters() if f"nbs/{p.stem}" not in explained}
    assert silent <= {"00_what_is_a_gpt", "30_config"}      # no such section; a table
    assert all(m.text and m.terms for m in MEANINGS)


def test_known_words_have_their_meaning():
    query = next(m for m in TERMS["query"] if m.chapter == "nbs/31_attention")
    assert query.text == "the wish. A vector that says what a token is looking for."
    assert [m.chapter for m in TERMS["seed"]] == ["nbs/20_tinytown", "nbs/50_sampling"]
    assert not any("{cite" in m.whole for m in MEANINGS)


def test_an_item_may_explain_several_words():
    corpus, seed = glossary.explain("**Corpus**: texts. **Seed**: the number.", "c")
    assert (corpus.terms, corpus.text, seed.terms) == (("Corpus",), "texts.", ("Seed",))
    both, = glossary.explain("**Total** and **active** parameters: two.", "c")
    assert both.terms == ("Total parameters", "active parameters")
    bpe, = glossary.explain("**Byte pair encoding** (BPE) {cite:p}`x`: join; a **merge**.", "c")
    assert bpe.terms == ("Byte pair encoding", "BPE", "merge")
    far, = glossary.explain("**NF4**: four bits ([elsewhere](73_lora.ipynb)), not 8.", "c")
    assert far.text == "four bits (elsewhere), not 8."      # the link starts from another page
    _, rank = glossary.explain("**Process**: a program. **Rank**: its number.", "c")
    assert rank.whole == "**Process**: a program. **Rank**: its number."
    assert glossary.explain("The letters in shapes: B texts.", "c") == []


def test_words_that_are_left_alone_are_words_of_the_glossary():
    plural = {t + "s" for t in TERMS}
    assert glossary.EVERYDAY | glossary.NEVER <= set(TERMS) | plural


def test_the_meaning_is_that_of_the_chapter_or_an_earlier_one():
    one, two = (glossary.Meaning(("Head",), "**Head**", "it", c) for c in ("nbs/31", "nbs/37"))
    chosen = [glossary.choose([one, two], f"nbs/{n}") for n in (20, 31, 33, 37, 40)]
    assert chosen == [one, one, one, two, two]


def page(*children) -> nodes.document:
    document = new_document("page")
    section = nodes.section("", nodes.title("", "A head and a token"), *children)
    document += section
    return document


def words(document: nodes.document, chapter: str = "nbs/60") -> list[str]:
    terms = {"token": "nbs/21", "softmax": "nbs/31", "dot product": "nbs/31", "head": "nbs/32",
             "RMS": "nbs/34", "product": "nbs/22", "token id": "nbs/21"}
    meanings = [glossary.Meaning((t,), f"**{t}**", "m", c) for t, c in terms.items()]
    glossary.Linker(glossary.by_term(meanings), chapter).link(document, "g.html")
    return [f"{n.astext()}>{n['refuri']}" for n in document.findall(nodes.reference)
            if "term" in n["classes"]]


def test_the_first_occurrence_is_linked_as_a_whole_word():
    document = page(nodes.paragraph("", "Tokenizers, tokens, a token. Softmax-like; SOFTMAX."),
                    nodes.paragraph("", "the token; Dot products; rms, RMS; token ids"))
    before = document.astext()
    assert words(document) == ["tokens>g.html#term-token", "SOFTMAX>g.html#term-softmax",
                               "Dot products>g.html#term-dot-product", "RMS>g.html#term-rms",
                               "token ids>g.html#term-token-id"]
    assert document.astext() == before


def test_everyday_words_are_linked_in_their_own_chapter_only():
    assert words(page(nodes.paragraph("", "its head"))) == []
    assert words(page(nodes.paragraph("", "its head")), "nbs/32") == ["head>g.html#term-head"]


def test_emphasis_stays_and_what_is_no_prose_is_left_alone():
    bold = nodes.paragraph("", "", nodes.strong("", "a softmax row"))
    quiet = [nodes.paragraph("", "", nodes.literal("", "token")),
             nodes.paragraph("", "", nodes.reference("", "token", refuri="x")),
             nodes.literal_block("", "token"), nodes.figure("", nodes.caption("", "token")),
             nodes.container("", nodes.paragraph("", "token"), classes=["cell"]),
             nodes.block_quote("", nodes.paragraph("", "token")),
             nodes.section("", nodes.title("", "The words"), nodes.paragraph("", "token"))]
    document = page(bold, *quiet)
    assert words(document) == ["softmax>g.html#term-softmax"]
    assert isinstance(bold[0], nodes.strong) and bold[0].astext() == "a softmax row"


def test_a_page_has_a_limited_number_of_links(monkeypatch):
    monkeypatch.setattr(glossary, "MOST", 2)
    document = page(nodes.paragraph("", "token, softmax, RMS"), nodes.paragraph("", "RMS"))
    assert len(words(document)) == 2


def test_tips_are_html_and_name_another_chapter():
    meaning = glossary.Meaning(("Softmax",), "**Softmax**", "raise $e$ & *add* `x<y`", "nbs/31")
    markup = glossary.tips({"softmax": meaning}, "nbs/60", {"nbs/31": "31 · Position"})
    assert 'data-term="term-softmax"' in markup and "Chapter 31 · Position" in markup
    assert "<em>add</em> <code>x&lt;y</code>" in markup and "katex" in markup
    assert "Chapter" not in glossary.tips({"softmax": meaning}, "nbs/31", {})
    assert glossary.tips({}, "nbs/31", {}) == ""


def test_every_figure_has_a_label_of_its_own():
    "A label is an address in the whole book; the site refuses one that two chapters use."
    run = glossary.run
    found = [label for path in run.chapters() for cell in run.load(path).cells
             for label in re.findall(r"^#\| label: (\S+)$", cell.source, re.M)]
    twice = {label for label in found if found.count(label) > 1}
    assert len(found) > 60 and not twice
