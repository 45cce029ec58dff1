"""Gemma's tokens and loss mask made a second time, by other means: whole text, plain backend, characters."""

import random
import re

PROSE = [
    "Why is the sky blue?",
    "caf\u00e9 na\u00efve \u4e2d\u6587\u6587\u5b57 \u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u043f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea e\u0301 \u1d54f",
    "model\nuser\nmodel\n",
    "one  two   three\t\tfour",
    "<h1>title</h1> <table> a < b > c <end of turn> [1] {x: 2}",
    "\u00a0non\u2028breaking\u200b\ufeff",
    "1. a\r\n2. b\r\n\r\n",
    "the model is the user\n\n\nthe end",
]
CODE = [
    "    def f(x):\n        return x\n\n\n\n    # end",
    "\tif a:\n\t\t\tpass",
    " \t mixed\n\t  more",
    "\n\n  - item\n    - inner\n",
    "\r\n \n    late",
]


def make_talks(number, *, system=False, exchanges=4, seed=5):
    """Draw conversations as (system, [(role, text), ...]) of prose, code, odd letters and odd spaces."""
    chance = random.Random(seed)
    talks = []
    for _ in range(number):
        turns = []
        for _ in range(chance.randint(1, exchanges)):
            question = " ".join(chance.choices(PROSE, k=chance.randint(1, 3)))
            answer = "\n".join(chance.choices(CODE + PROSE, k=chance.randint(1, 4)))
            turns += [("user", chance.choice(["", " ", "\n"]) + question), ("assistant", answer + "\n ")]
        talks.append((" Be brief.\n" if system else "", turns))
    return talks


def render(system, turns, *, keep_indent):
    """Write a conversation out as the template does; return it with the places of its answers."""
    text, answers = "<bos>", []
    for number, (role, words) in enumerate(turns):
        if number == 0 and system:
            words = f"{system.strip()}\n\n{words.strip()}"
        indent = re.match(r"\s*?([ \t]*)(?=\S)", words)[1] if keep_indent and role == "assistant" else ""
        text += "<start_of_turn>" + {"user": "user\n", "assistant": "model\n"}[role]
        start = len(text)
        text += indent + words.strip() + "<end_of_turn>\n"
        if role == "assistant":
            answers.append((start, len(text)))
    return text, answers


def reference(tokenizer, system, turns, *, loss_on, keep_indent):
    """Return ids, labels, and where the <end_of_turn> of each learned answer stands."""
    text, answers = render(system, turns, keep_indent=keep_indent)
    if loss_on == "last_turn":
        answers = answers[-1:]
    whole = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    learned = [(len("<bos>"), len(text))] if loss_on == "all" else answers
    labels = [
        token if any(start < stop and stop > first and start < last for first, last in learned) else -100
        for token, (start, stop) in zip(whole.ids, whole.offsets, strict=True)
    ]
    starts = [start for start, _ in whole.offsets]
    ends = [starts.index(last - len("<end_of_turn>\n")) for _, last in answers]
    return whole.ids, labels, ends
