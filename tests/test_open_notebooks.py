"""Laws of the notebooks for other places: valid, plain, absolute, and enough on their own.

The last test installs one of them into a fresh environment and runs it there. ALL_NOTEBOOKS=1
runs every chapter like that.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import elsewhere
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

SITE = elsewhere.SITE
QUICK = "54_constrained"      # seconds to run; needs llguidance, matplotlib and the shipped weights
ON_DEMAND = {"datasets", "lm_eval"}     # a function imports it, and says how to install it
IF_THERE = {"peft", "bitsandbytes"}     # a proof imports it where it is installed
PRESENT = sys.stdlib_module_names | {"minigpt"}
LEFT = re.compile(r"\{[\w:.-]+\}`|^ {0,3}(?::::|(?:```|~~~)\{)|^\([\w:.-]+\)=$|^\{[.#]|\]\{[.#]"
                  r"|<(?:svg|script|style)\b", re.M)
CODE = re.compile(r"^(```+|~~~+)[^{\n]*\n.*?^\1|(?<!\})`+[^`\n]+`+", re.M | re.S)


def plain(text):
    return elsewhere.blocks(text, "nbs/31_attention", elsewhere.Pictures("31_attention"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    written = elsewhere.write(folder)
    return {path.stem: nbformat.read(path, as_version=4) for path in written}, folder


# ---- the converter ------------------------------------------------------------------------------
@pytest.mark.parametrize("myst, markdown", [
    (":::{note}\nOne `x`.\n\nTwo.\n:::", "> **Note**\n>\n> One `x`.\n>\n> Two."),
    ("```{tip} Short\n:class: wide\nGo.\n```", "> **Short**\n>\n> Go."),
    (":::{admonition} Solution\n:class: dropdown\n$1+1$ is {math}`2`.\n:::",
     "<details>\n<summary>Solution</summary>\n\n$1+1$ is $2$.\n\n</details>"),
    ("::::{grid} 2\n:gutter: 3\n:::{grid-item-card} Title\nText.\n:::\n::::",
     "**Title**\n\nText."),
    ("```{math}\n:label: sum\nx + y\n```", "$$\nx + y\n$$"),
    ("(here)=\n## Heading\n% a remark\n{.wide}\nText", "## Heading\nText"),
    ("[a]{.red}, [link](https://x.org){.red}, `x`{.red}", "a, [link](https://x.org), `x`"),
    ("```{toctree}\na\nb\n```", ""),
    (":::{predict} How many `x`?\n:answer: 2\n:choices: 1 | 2\n\nTwo.\n:::",
     "> **Predict.**\n>\n> How many `x`?\n\n- 1\n- 2\n\n"
     "<details>\n<summary>Answer</summary>\n\n**2.** Two.\n\n</details>"),
    (":::{predict} How long?\n:answer: 3\n:unit: s\n\nThree.\n:::",
     "> **Predict.**\n>\n> How long?\n\n"
     "<details>\n<summary>Answer</summary>\n\n**3 s.** Three.\n\n</details>"),
    (":::{widget} tokens\n:text: hello\n\nTry it.\n:::",
     f"> Here [the page on the website]({SITE}nbs/31_attention.html) has a part that you can try. "
     "Try it."),
    ("{abbr}`GPT (transformer)`, {kbd}`Esc`, {term}`token`", "GPT (transformer), <kbd>Esc</kbd>, "
                                                             "token"),
])
def test_myst_becomes_markdown(myst, markdown):
    assert plain(myst) == markdown


@pytest.mark.parametrize("text", [
    "`{cite:p}`x`` stays code", "```python\n[a](b.md)\n# {ref}`x`\n:::{note}\n```",
    "100 % sure, a {brace}, f(x) = 3", "$$\\begin{pmatrix} a \\\\ b \\end{pmatrix}$$",
    "costs $5 and [x] is a box",
])
def test_what_is_plain_stays(text):
    assert plain(text) == text


@pytest.mark.parametrize("url, where", [
    ("34_norm.ipynb", f"{SITE}nbs/34_norm.html"),
    ("34_norm.ipynb#by-hand", f"{SITE}nbs/34_norm.html#by-hand"),
    ("../book/references.md", f"{SITE}book/references.html"),
    ("../index.md", SITE),
    ("#the-words", f"{SITE}nbs/31_attention.html#the-words"),
    ("../README.md", f"{elsewhere.REPOSITORY}/blob/main/README.md"),
    ("../book/_static/favicon.svg", elsewhere.REPOSITORY.replace(
        "github.com", "raw.githubusercontent.com") + "/main/book/_static/favicon.svg"),
    ("https://pytorch.org/a#b", "https://pytorch.org/a#b"), ("mailto:a@b.org", "mailto:a@b.org"),
])
def test_links_become_absolute(url, where):
    said = plain(f"see [it]({url}) and <a href='{url}'>")
    assert said == f"see [it]({where}) and <a href='{where}'>"


def test_a_label_leads_to_the_page_that_has_it():
    label, page = next((k, v) for k, v in elsewhere.labels().items() if "32_" not in v)
    assert plain(f"{{ref}}`words <{label}>`") == f"[words]({SITE}{page}.html#{label})"


def test_a_link_without_words_gets_the_title_of_its_page():
    assert plain("[](34_norm.ipynb)") == f"[34 · Normalisation]({SITE}nbs/34_norm.html)"
    assert plain("{doc}`34_norm`") == f"[34 · Normalisation]({SITE}nbs/34_norm.html)"


def test_citations_name_author_and_year():
    said = plain("{cite:p}`vaswani2017attention,press2017tying`")
    assert said == (f"([Vaswani et al., 2017]({SITE}book/references.html); "
                    f"[Press and Wolf, 2017]({SITE}book/references.html))")
    assert plain("{cite:p}`nobody2000`") == f"([nobody2000]({SITE}book/references.html))"


def test_a_drawing_becomes_a_file():
    pictures = elsewhere.Pictures("31_attention")
    text = ('<figure class="drawing">\n<svg role="img" aria-label="A [big] box">'
            "<rect/></svg>\n<figcaption>One box.</figcaption>\n</figure>\n\nAfter.")
    assert elsewhere.blocks(text, "nbs/31_attention", pictures) == (
        f"![A big box]({SITE}notebooks/31_attention-1.svg)\n\n*One box.*\n\nAfter.")
    svg = pictures["31_attention-1.svg"]
    assert 'xmlns="http://www.w3.org/2000/svg"' in svg and 'color="#7d838c"' in svg


def test_directives_become_what_jupyter_knows():
    nb = new_notebook(cells=[
        new_markdown_cell("# 32 · Attention", id="title"),
        new_code_cell("#| default_exp attention", id="nothing"),
        new_code_cell("#| export\nx = 1", id="kept"),
        new_code_cell("#| eval: false\nexpensive()", id="shown"),
        new_code_cell("#| code-fold: true\n#| code-summary: Solution 1\ny = 2", id="folded"),
        new_code_cell("#| fig-cap: A line.\n#| label: fig-line\nplot()", id="drawn")])
    copy, _ = elsewhere.convert(nb, "31_attention")
    cells = {cell.id: cell for cell in copy.cells}
    assert list(cells) == ["title", "elsewhere-page", "elsewhere-install", "kept", "shown",
                           "folded", "drawn", "drawn-caption"]
    assert cells["kept"].source == "x = 1"
    assert (cells["shown"].cell_type, cells["shown"].source) == (
        "markdown", "```python\nexpensive()\n```")
    assert cells["folded"].source == "#@title Solution 1\ny = 2"
    assert cells["folded"].metadata.jupyter.source_hidden
    assert cells["drawn-caption"].source == "*A line.*"


# ---- every chapter ------------------------------------------------------------------------------
def test_every_chapter_is_there_and_valid(copies):
    notebooks, _ = copies
    assert notebooks.keys() == {p.stem for p in elsewhere.run.chapters()}
    for name, nb in notebooks.items():
        nbformat.validate(nb)
        assert nb.metadata.kernelspec.name == "python3", name
        ids = [cell.id for cell in nb.cells]
        assert len(set(ids)) == len(ids), name
        code = [cell for cell in nb.cells if cell.cell_type == "code"]
        assert code[0].source == elsewhere.INSTALL, name
        assert not any(cell.outputs or cell.execution_count for cell in code), name
        assert f"{SITE}nbs/{name}.html" in nb.cells[1].source, name


def test_nothing_but_markdown_is_left(copies):
    for name, nb in copies[0].items():
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                assert not LEFT.search(CODE.sub("", cell.source)), (name, cell.id)
            else:
                assert not re.search(r"^\s*#\s*\|", cell.source, re.M), (name, cell.id)


def test_every_link_is_absolute_and_every_drawing_is_there(copies):
    notebooks, folder = copies
    seen = 0
    for name, nb in notebooks.items():
        for cell in (c for c in nb.cells if c.cell_type == "markdown"):
            text = CODE.sub("", cell.source)
            for url in re.findall(r"\]\(([^)\s]+)|(?:href|src)=[\"'](.*?)[\"']", text):
                url = "".join(url)
                assert url.startswith(("https://", "mailto:")), (name, cell.id, url)
                if url.startswith(f"{SITE}notebooks/"):
                    assert (folder / url.rsplit("/")[-1]).is_file()
                    seen += 1
    assert seen == len(list(folder.glob("*.svg"))) > 0


def test_the_same_chapter_gives_the_same_bytes(copies, tmp_path):
    _, first = copies
    elsewhere.write(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in first.iterdir()}


# ---- the real thing -----------------------------------------------------------------------------
def imported() -> set[str]:
    "Every package that some chapter imports."
    found = set()
    for path in elsewhere.run.chapters():
        for cell in nbformat.read(path, as_version=4).cells:
            for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add(node.module.split(".")[0])
    return found - PRESENT - ON_DEMAND - IF_THERE


def pip_settings() -> dict[str, str]:
    "What this user's pip is told, as environment variables: the new home has no settings."
    def ask(*what):
        return subprocess.run([sys.executable, "-m", "pip", *what], capture_output=True, text=True)
    found = {}
    for line in ask("config", "list").stdout.splitlines():
        name, _, value = line.partition("=")
        if name.startswith(("global.", "install.")):
            key = "PIP_" + name.split(".", 1)[1].upper().replace("-", "_")
            found[key] = " ".join(ast.literal_eval(value).split())
    cache = ask("cache", "dir")
    return found | ({"PIP_CACHE_DIR": cache.stdout.strip()} if cache.returncode == 0 else {})


def asked_for(*names: str) -> list[Distribution]:
    "The installed packages that these ask for, and those that these ask for, as pip would find."
    todo, found, seen = [Requirement(name) for name in names], {}, set()
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            package = distribution(wanted.name)
        except PackageNotFoundError:                  # then pip fetches it, or a marker spares it
            continue
        found[package.name] = package
        todo += [need for need in map(Requirement, package.requires or ()) if need.marker is None
                 or any(need.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras))]
    return [package for name, package in found.items() if name != "minigpt"]


def link(source: Path, target: Path) -> None:
    "Let `target` be `source`; where two packages share a folder, a folder of links."
    if target.is_symlink() and source.is_dir() and target.resolve() != source.resolve():
        other = target.resolve()
        target.unlink()
        target.mkdir()
        for path in other.iterdir():
            link(path, target / path.name)
    if target.is_dir() and not target.is_symlink():
        for path in source.iterdir():
            link(path, target / path.name)
    elif not target.exists():
        target.symlink_to(source, source.is_dir())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A new Python, its surroundings, and a wheel of this checkout.

    What the wheel asks for is linked into it from this environment: to copy PyTorch took three
    minutes. pip, in a chapter's first cell, finds it there, and would fetch what is missing.
    """
    place = tmp_path_factory.mktemp("fresh")
    source, home = place / "source", place / "home"
    home.mkdir()
    shutil.copytree(ROOT / "minigpt", source / "minigpt",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--no-build-isolation", "--wheel-dir", place, source], check=True)
    venv.create(place / "venv", with_pip=True)
    python = place / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ours = re.compile("PYTHON|VIRTUAL_ENV|IPYTHON|JUPYTER|MPL|MATPLOTLIB|XDG_|HF_|CONDA")
    env = {k: v for k, v in os.environ.items() if not ours.match(k)} | {
        "HOME": str(home), "USERPROFILE": str(home), "PYTHONUTF8": "1",
        # the pinned versions: a new release of somebody else must not fail this test
        "PIP_CONSTRAINT": str(ROOT / "requirements.txt"), "PIP_NO_COMPILE": "1", **pip_settings()}
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          env=env, check=True, capture_output=True, text=True).stdout.strip()
    with suppress(OSError):                           # Windows may allow no links: pip copies
        for package in asked_for("minigpt[notebooks]", "ipykernel"):
            for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
                link(Path(package.locate_file(top)), Path(site, top))
    got = subprocess.run([python, "-m", "pip", "install", "--quiet", "--retries", "0", "ipykernel"],
                         env=env, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"the package index cannot be reached: {got.stderr.strip()[-200:]}")
    return python, env, next(place.glob("minigpt-*.whl"))


def run_in(fresh, nb, folder):
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    python, env, _ = fresh

    class Kernel(AsyncKernelManager):
        @property
        def kernel_spec(self):
            command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    NotebookClient(nb, kernel_manager_class=Kernel, timeout=elsewhere.run.TIME_LIMIT,
                   resources={"metadata": {"path": str(folder)}}).execute(env=env)


ALL = sorted(p.stem for p in elsewhere.run.chapters())


@pytest.mark.parametrize("name", ALL if os.environ.get("ALL_NOTEBOOKS") else [QUICK])
def test_it_runs_from_an_empty_folder(name, copies, fresh, tmp_path):
    nb = copies[0][name].copy()
    install = next(cell for cell in nb.cells if cell.cell_type == "code")
    ours, wheel = f"git+{elsewhere.REPOSITORY}@{elsewhere.REF}", fresh[2].as_uri()
    assert install.source.count(ours) == 1
    install.source = install.source.replace(ours, wheel)
    last = new_code_cell("import json, sys, minigpt\nfrom importlib.util import find_spec\n"
                         f"gone = [n for n in {sorted(imported())} if not find_spec(n)]\n"
                         "print(json.dumps([minigpt.__file__, sys.prefix, gone]))")
    nb.cells.append(last)
    run_in(fresh, nb, tmp_path)
    where, prefix, gone = json.loads(last.outputs[0].text)
    assert Path(prefix).resolve() == fresh[0].parent.parent.resolve()
    assert Path(where).resolve().is_relative_to(Path(prefix).resolve()), where
    assert not Path(where).resolve().is_relative_to(ROOT), where
    assert gone == [], "some chapter needs these; add them to the extra `notebooks`"
