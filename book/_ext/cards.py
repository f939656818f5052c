"""Draw a card of 1200 x 630 pixels for each page: what a link to it shows when it is shared.

The tags come from sphinxext-opengraph. Its own cards have another size and carry Sphinx's logo, so
only its font is used. A card is kept in book/_build/cards until its words change.
"""
import hashlib
import re
import shutil
from html import escape
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from PIL import Image, ImageDraw, ImageFont
from sphinxext import opengraph

SIZE = (1200, 630)
LEFT, RIGHT = 80, 1120
PAPER, INK, GREY, BLUE = "#ffffff", "#1b2733", "#57636f", "#2f6fc4"
FONT = Path(opengraph.__file__).parent / "_static" / "Roboto-Flex.ttf"
FOLDER = "_images/cards"


def font(size: int, weight: int = 400) -> ImageFont.FreeTypeFont:
    face = ImageFont.truetype(FONT, size)
    axes = {axis["name"]: axis["default"] for axis in face.get_variation_axes()}
    face.set_variation_by_axes(list((axes | {b"wght": weight, b"opsz": size}).values()))
    return face


def fitted(text: str, sizes: range, weight: int, most: int) -> tuple:
    "The largest font with which `text` fits into so many lines of the card, and those lines."
    for size in sizes:
        face, lines = font(size, weight), [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if face.getlength(longer) <= RIGHT - LEFT:
                lines[-1] = longer
            else:
                lines.append(word)
        if len(lines) <= most:
            return face, lines
    raise ValueError(f"too long for a card, shorten the page's title or first quotation: {text!r}")


def draw(book: str, number: str, title: str, says: str, address: str) -> Image.Image:
    card = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(card)
    pen.rectangle((0, 0, 24, SIZE[1]), fill=BLUE)
    if title != book:
        pen.text((LEFT, 110), book, GREY, font(38, 600), anchor="ls")
    pen.text((RIGHT, 110), number, BLUE, font(38, 600), anchor="rs")
    y = 130
    for text, sizes, weight, most, ink in ((title, range(112, 56, -4), 700, 1, INK),
                                           (says, range(46, 30, -2), 400, 3, GREY)):
        face, lines = fitted(text, sizes, weight, most)
        for line in lines:
            y += 1.25 * face.size
            pen.text((LEFT, y), line, ink, face, anchor="ls")
        y += 40
    pen.text((LEFT, 560), address, GREY, font(28), anchor="ls")
    return card.quantize(64)


def sentence(doctree: nodes.document) -> str:
    "What the page says of itself: its `> ` line, or else the first sentence of its text."
    quotation = next(doctree.findall(nodes.block_quote), None)
    text = next((quotation or doctree).findall(nodes.paragraph)).astext().replace("\n", " ")
    return text if quotation else re.split(r"(?<=[.?!]) ", text)[0]


def page(app, pagename, templatename, context, doctree) -> None:
    if doctree is None:
        return
    title = next(doctree.findall(nodes.title)).astext()
    number, _, name = title.rpartition(" · ")
    says, address = sentence(doctree), app.config.html_baseurl.split("//")[-1].strip("/")
    words = (app.config.project, number and f"Chapter {number}", name, says, address)
    key = hashlib.sha256(repr(words).encode() + Path(__file__).read_bytes()).hexdigest()[:10]
    target = Path(app.outdir) / FOLDER / f"{pagename.split('/')[-1]}.{key}.png"
    kept = Path(app.outdir).parent / "cards" / target.name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        draw(*words).save(kept, optimize=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, target)
    context["meta"] = (context.get("meta") or {}) | {
        "og:image": urljoin(app.config.html_baseurl, f"{FOLDER}/{target.name}"),
        "og:image:width": str(SIZE[0]), "og:image:height": str(SIZE[1]),
        "og:image:alt": f"{title}. {says}", "og:description": says,
    }
    if not app.env.metadata[pagename].get("description"):
        context["metatags"] += f'<meta name="description" content="{escape(says)}" />\n'


def setup(app):
    app.connect("html-page-context", page, priority=400)  # before sphinxext-opengraph reads it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
