"""The card beside the shipped weights says what facts.json says."""
import json
import re

from minigpt.checkpoint import shipped_model

CARD = (shipped_model() / "README.md").read_text(encoding="utf-8")
FACTS = json.loads((shipped_model() / "facts.json").read_text(encoding="utf-8"))


def percent(name):
    return f"{100 * FACTS[name]:.1f}%"


def test_every_figure_of_the_card_is_a_fact():
    config = json.loads((shipped_model() / "config.json").read_text(encoding="utf-8"))
    said = [f"{FACTS['parameters']:,}", f"{FACTS['steps']:,}", f"{FACTS['tokens seen']:,}",
            f"{FACTS['minutes']} minutes", f"{FACTS['held_out_bits a document']} bits",
            f"{FACTS['floor_bits a document']}", percent("right answers, held-out phrasings"),
            percent("right by the note, about strangers"), percent("sums right"),
            percent("right by the note, about the absent"),
            percent("right by the note, against the town's truth"),
            f"{config['n_layer']} blocks of width {config['d_model']}",
            f"{config['vocab_size']:,}", f"{config['context_length']} tokens"]
    assert [figure for figure in said if figure not in CARD] == []
    known = "".join(said) + "1.8 1,000 0 2.0"
    body = CARD.split("---", 2)[2]
    assert [n for n in re.findall(r"\d[\d.,]*\d|\d", body) if n not in known] == []
