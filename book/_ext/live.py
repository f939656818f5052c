"""The live parts of a page: widgets that run the model, predictions, and the page of progress.

Each part is whole without a script: a widget stands there as a picture that the same model drew
when the site was built, a prediction as a question with a folded answer.
"""
import hashlib
import html
from pathlib import Path

import levels
import still
import still_batching
import still_chat
import still_quantize
import still_recording
import still_trainer
import still_zoo
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

BEGIN = {"trainer": still_trainer.NAMES, "zoo": "length",     # parts that do not begin with a story
         "batching": still_batching.BEGIN, "recording": still_recording.TEXTS}
ALIVE = {"chat": "you can ask questions of your own",
         "zoo": "you can choose what is paid for, and watch what becomes of it",
         "quantize": "you can choose the bits and the scales, and read what the model then writes",
         "recording": "you can drag along the run, and watch the model learn",
         "batching": "you can let it run, and choose the arrival rate and the policy"}
DRAWN_FROM = {"chat": still_chat.WEIGHTS, "zoo": still_zoo.RUNS, "recording": still_recording.RUN}


def attributes(**values: str) -> str:
    pairs = [(name, html.escape(value)) for name, value in values.items() if value]
    return "".join(f' data-{name}="{value}"' for name, value in pairs)


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


class Widget(SphinxDirective):
    ":::{widget} tokens` with the text to begin with; the body says what to look for."

    required_arguments, has_content = 1, True
    option_spec = {"text": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        text = self.options.get("text", BEGIN.get(kind, "Once upon a time"))
        text = text.replace("\\n", "\n")              # an option is one line
        if kind not in still.PICTURES:
            raise self.error(f"widget {kind!r} is unknown; choose from {', '.join(still.PICTURES)}")
        self.env.note_dependency(str(DRAWN_FROM.get(kind, still.WEIGHTS)))
        caption = nodes.container(classes=["live-caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        opened = f'<div class="live live-{kind}"{attributes(live=kind, text=text)}>'
        picture = raw(f"{opened}{still.PICTURES[kind](text)}</div>")
        still_here = raw('<noscript><p class="live-count">On the website, with scripts on, '
                         f"this picture is alive: {ALIVE.get(kind, 'you can change its text')}."
                         "</p></noscript>")
        return [nodes.container("", picture, still_here, caption, classes=["live-part-of-page"])]


class Predict(SphinxDirective):
    "A question to commit to; the body is the answer, in words."

    required_arguments, final_argument_whitespace, has_content = 1, True, True
    option_spec = {"answer": directives.unchanged_required, "choices": directives.unchanged,
                   "within": directives.unchanged, "unit": directives.unchanged}

    def field(self, kind: str) -> str:
        "What the reader commits with: buttons to choose from, or a line to write on."
        if kind == "choice":
            return "".join(f'<label><input type="radio" name="guess" value="{html.escape(c)}"> '
                           f"<span>{html.escape(c)}</span></label>" for c in self.choices)
        mode = ' inputmode="decimal"' if kind == "number" else ""
        unit = html.escape(self.options.get("unit", ""))
        return (f'<label>Your guess <input type="text" name="guess" autocomplete="off" size="12"'
                f"{mode}></label> <span>{unit}</span>")

    def run(self) -> list[nodes.Node]:
        question, answer = self.arguments[0], self.options.get("answer", "")
        self.choices = [c.strip() for c in self.options.get("choices", "").split("|") if c.strip()]
        plain = answer.replace(",", "").rstrip(" %")
        kind = "choice" if self.choices else "text"
        if not self.choices and plain.lstrip("+-").replace(".", "", 1).isdigit():
            kind = "number"
        if not answer or (self.choices and answer not in self.choices):
            raise self.error(f"the answer {answer!r} is not among the choices {self.choices}")
        name = hashlib.sha256(question.encode()).hexdigest()[:10]
        page = self.env.docname
        self.env.predictions.setdefault(page, []).append(name)
        text, answers = nodes.paragraph(classes=["predict-question"]), nodes.container()
        inline, _ = self.state.inline_text(question, self.lineno)
        text += inline
        self.state.nested_parse(self.content, self.content_offset, answers)
        facts = attributes(page=page, id=name, answer=answer, kind=kind,
                           within=self.options.get("within", ""))
        return [raw(f'<div class="predict" role="group" aria-label="Predict"{facts}>'),
                text,
                raw(f'<form hidden><fieldset><legend>Commit to a guess</legend>{self.field(kind)}'
                    '</fieldset><button type="submit">Commit</button></form>'
                    '<p class="predict-says" role="status"></p>'
                    f"<details><summary>Answer: {html.escape(answer)} "
                    f'{html.escape(self.options.get("unit", ""))}</summary>'),
                answers,
                raw("</details></div>")]


class progress_table(nodes.General, nodes.Element):
    "Stands where the list of chapters will come, once all of them are read."


class Progress(SphinxDirective):
    "The list of chapters, what was read of them, and how the guesses went."

    def run(self) -> list[nodes.Node]:
        return [progress_table()]


def fill_progress(app, doctree, docname) -> None:
    for place in list(doctree.findall(progress_table)):
        rows = []
        for page in chapters(app.env):
            title = html.escape(app.env.titles[page].astext())
            n = len(app.env.predictions.get(page, []))
            ids = " ".join(app.env.predictions.get(page, []))
            off = f' data-level="{word}"' if (word := levels.level(page).word) else ""
            rows.append(f'<tr data-page="{page}" data-ids="{ids}"{off}><td><a href="'
                        f'{app.builder.get_relative_uri(docname, page)}">{title}</a></td>'
                        f'<td class="progress-read">–</td><td>{n}</td>'
                        '<td class="progress-guesses">–</td></tr>')
        place.replace_self(raw(
            '<p data-progress-says role="status">Your browser keeps this page\'s notes; '
            'it needs scripts to show them.</p><div class="pst-scrollable-table-container">'
            '<table class="table" data-progress>'
            "<thead><tr><th>Chapter</th><th>Read</th><th>Predictions</th><th>Your guesses</th></tr>"
            f'</thead><tbody>{"".join(rows)}</tbody></table></div>'
            '<p><button type="button" data-progress-forget hidden>Forget all of this</button></p>'))


def chapters(env) -> list[str]:
    "The pages that are chapters, in the book's order."
    return sorted(name for name in env.found_docs if name.startswith("nbs/"))


def page_context(app, page, template, context, doctree) -> None:
    "A chapter's page knows its name, so that it can be marked as read."
    if page.startswith("nbs/") and "body" in context:
        context["body"] = f'<div data-chapter="{page}">{context["body"]}</div>'


def write_files(app, exception) -> None:
    "What the parts fetch: a model, the trainer's text, the zoo's runs, texts to measure a loss on."
    if exception is None and app.builder.format == "html":
        for write in (still.write_model, still_trainer.write_names, still_zoo.write_runs,
                      still_quantize.write_documents, still_recording.write_recording):
            write(Path(app.outdir))


def setup(app):
    app.connect("build-finished", write_files)
    app.connect("builder-inited", lambda app: setattr(
        app.env, "predictions", getattr(app.env, "predictions", {})))
    app.connect("env-purge-doc", lambda app, env, page: env.predictions.pop(page, None))
    app.connect("doctree-resolved", fill_progress)
    app.connect("html-page-context", page_context)
    app.add_node(progress_table)
    app.add_directive("widget", Widget)
    app.add_directive("predict", Predict)
    app.add_directive("progress", Progress)
    app.add_js_file("page/start.js", type="module")
    app.add_css_file("page/page.css")
    return {"parallel_read_safe": False, "parallel_write_safe": True}
