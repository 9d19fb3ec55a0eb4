"""Makes syshax-demo.gguf, record.json and the answers in questions.json from a trained checkpoint:

    python export.py --work DIR

Needs what train.py needs, and the `gguf` package. Every number is measured on the written file.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import gguf_file
import torch
from chat import HERE, Corpus, Turn
from model import Llama, Shape, greedy
from tokenizers import Tokenizer
from tokens import ASSISTANT, BEGIN, END, USER
from train import load_corpus, mean_loss
from wordnet import Entry

FILE = HERE / "syshax-demo.gguf"
SAMPLE = 300  # words per loss figure


def checkpoint(work: Path) -> tuple[Llama, dict[str, Any]]:
    """The trained model and the rest of its checkpoint (steps, seconds)."""
    state = torch.load(work / "model.pt")
    model = Llama(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    model.eval()
    return model, state


def question_turns(entries: list[Entry], rng: random.Random) -> list[Turn]:
    return [Turn(f"What is {e.phrase}?", e.answer) for e in rng.sample(entries, min(SAMPLE, len(entries)))]


def losses(model: Llama, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, dict[str, float]]:
    """Loss (nats per answer token) and perplexity on words often seen, seldom seen and held out."""
    found = {}
    for name in ("core", "tail", "held_out"):
        loss = mean_loss(model, tokenizer, question_turns(getattr(corpus, name), random.Random(1)))
        found[name] = {"loss": round(loss, 4), "perplexity": round(math.exp(loss), 2)}
    return found


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    return [BEGIN, USER, *tokenizer.encode(question).ids, END, ASSISTANT]


def answered(model: Llama, tokenizer: Tokenizer, item: dict[str, Any]) -> dict[str, Any]:
    """A fixed question with the greedy answer; token ids too, for tests of engines."""
    asked = prompt(tokenizer, item["question"])
    said = greedy(model, asked, END)
    answer = tokenizer.decode(said)
    return {**item, "answer": answer, "right": answer == item["expected"], "prompt_ids": asked, "answer_ids": said}


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"(?<=\d,)\s+(?=\d)|(?<=\[)\s+(?=\d)|(?<=\d)\s+(?=\])", "", text)  # ids on one line
    path.write_text(text + "\n")


def export(work: Path) -> None:
    model, state = checkpoint(work)
    tokenizer, corpus = Tokenizer.from_file(str(work / "tokenizer.json")), load_corpus()
    gguf_file.write(FILE, model, tokenizer)
    shipped = gguf_file.read(FILE)
    questions = json.loads((HERE / "questions.json").read_text())
    answers = [answered(shipped, tokenizer, item) for item in questions]
    record = {
        "steps": state["step"],
        "train_seconds": round(state["seconds"]),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "bytes": FILE.stat().st_size,
        "words": {"core": len(corpus.core), "tail": len(corpus.tail), "held_out": len(corpus.held_out)},
        "before_quantisation": losses(model, tokenizer, corpus),
        "shipped": losses(shipped, tokenizer, corpus),
        "right": sum(a["right"] for a in answers),
        "questions": answers,
    }
    write_json(HERE / "record.json", record)
    kept = ("word", "question", "expected", "answer")
    write_json(HERE / "questions.json", [{k: a[k] for k in kept} for a in answers])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory train.py wrote")
    torch.set_num_threads(2)
    export(parser.parse_args().work)


if __name__ == "__main__":
    main()
