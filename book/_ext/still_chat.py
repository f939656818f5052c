"""The still picture of the conversation: what its model answered when the site was built."""
import functools
import html

from minigpt.chat import replies
from minigpt.checkpoint import load_model, shipped_model

WEIGHTS = shipped_model("chat") / "model.safetensors"
ASKED = 2             # of the questions; the others are buttons in the live part


@functools.cache
def opened():
    return load_model(shipped_model("chat"))


def turn(role: str, text: str) -> str:
    "A turn as the live part writes it, which takes these for its first ones."
    who = {"user": "You", "assistant": "MiniGPT"}[role]
    return (f'<div class="chat-turn chat-{role}"><span class="chat-who">{who}: </span>'
            f'<p class="chat-says">{html.escape(text)}</p></div>')


@functools.cache
def chat(text: str) -> str:       # questions, one a line
    "The first questions, each answered with what was said before it in view."
    messages = []
    for question in [line for line in text.splitlines() if line.strip()][:ASKED]:
        messages.append({"role": "user", "content": question})
        [said] = replies(*opened(), [messages])
        messages.append({"role": "assistant", "content": said})
    turns = "".join(turn(message["role"], message["content"]) for message in messages)
    return f'<div class="chat-log">{turns}</div>'
