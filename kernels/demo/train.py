"""Trains the demo model; run by hand, never in CI:  python train.py --work DIR [--steps N].

Needs torch, tokenizers and Debian's wordnet-base. Writes DIR/tokenizer.json, DIR/model.pt every few
minutes and DIR/log.jsonl; started again on the same DIR it goes on from model.pt. The same seed, steps
and torch build draw the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from chat import FAMILIAR, Corpus, Turn, conversations, fixed_words, split
from model import Llama, Shape
from tokenizers import Tokenizer
from tokens import flat, pieces, rows, train_tokenizer
from torch import Tensor
from torch.nn import functional as F
from wordnet import read_entries


@dataclass(frozen=True)
class Plan:
    """How to train; one step reads `rows` rows of `length` tokens, a long step one of `long_length`."""

    steps: int = 1900
    rows: int = 12
    length: int = 192
    long_every: int = 25
    long_length: int = 2047
    peak: float = 2.5e-3
    floor: float = 1e-5
    warmup: int = 150
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 7
    save_seconds: float = 120.0


def rate(plan: Plan, step: int) -> float:
    """Learning rate: a linear rise, then a cosine down to the floor."""
    if step < plan.warmup:
        return plan.peak * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.floor + (plan.peak - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def batches(tokenizer: Tokenizer, corpus: Corpus, plan: Plan, first: int) -> Iterator[Tensor]:
    """Batches of shape (rows, 2, length + 1) from step `first` on, each drawn from its own seed."""
    for step in range(first, plan.steps):
        is_long = step % plan.long_every == plan.long_every - 1
        source = rows(
            tokenizer, conversations(corpus, plan.seed * 1_000_003 + step), plan.long_length if is_long else plan.length
        )
        yield torch.stack([next(source) for _ in range(1 if is_long else plan.rows)])


def loss_of(model: Llama, batch: Tensor) -> Tensor:
    """Mean cross-entropy, nats per learnt token; only those reach the output matrix."""
    ids, learnt = batch[:, 0], batch[:, 1, 1:].bool()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids[:, :-1])[learnt]
        scores = model.logits(hidden)
    return F.cross_entropy(scores.float(), ids[:, 1:][learnt])


def optimiser(model: Llama, plan: Plan) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def mean_loss(model: Llama, tokenizer: Tokenizer, turns: list[Turn]) -> float:
    """Mean nats per answer token over single questions, in float32."""
    total, count = 0.0, 0
    with torch.no_grad():
        for turn in turns:
            ids, learnt = flat(pieces(tokenizer, "", [turn]))
            marks = torch.tensor([learnt[1:]])
            scores = model.logits(model(torch.tensor([ids[:-1]]))[marks])
            total += float(F.cross_entropy(scores, torch.tensor([ids[1:]])[marks], reduction="sum"))
            count += int(marks.sum())
    return total / count


def step_once(model: Llama, optim: torch.optim.AdamW, batch: Tensor, plan: Plan, step: int) -> float:
    for group in optim.param_groups:
        group["lr"] = rate(plan, step)
    loss = loss_of(model, batch)
    optim.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    optim.step()
    return float(loss.detach())


def save(work: Path, model: Llama, optim: torch.optim.AdamW, step: int, seconds: float) -> None:
    """Write aside, then rename: a kill in between leaves the last whole file."""
    state = {
        "model": model.state_dict(),
        "optim": optim.state_dict(),
        "step": step,
        "seconds": seconds,
        "shape": asdict(model.shape),
    }
    torch.save(state, work / "model.new")
    (work / "model.new").rename(work / "model.pt")


def resume(work: Path, model: Llama, optim: torch.optim.AdamW) -> tuple[int, float]:
    """Load model.pt where there is one; steps done and seconds spent so far."""
    if not (work / "model.pt").exists():
        return 0, 0.0
    state = torch.load(work / "model.pt")
    model.load_state_dict(state["model"])
    optim.load_state_dict(state["optim"])
    return state["step"], state["seconds"]


def load_corpus() -> Corpus:
    return split(read_entries(), set(fixed_words()) | FAMILIAR)


def train(work: Path, plan: Plan) -> None:
    """Train from the last checkpoint to plan.steps, saving and logging on the way."""
    corpus = load_corpus()
    file = work / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.exists() else train_tokenizer(corpus, file)
    torch.manual_seed(plan.seed)
    model = Llama(Shape())
    optim = optimiser(model, plan)
    first, before = resume(work, model, optim)
    began = saved = time.monotonic()
    smooth = math.nan
    for step, batch in enumerate(batches(tokenizer, corpus, plan, first), first):
        loss = step_once(model, optim, batch, plan, step)
        smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
        spent = before + time.monotonic() - began
        if step % 25 == 0:
            log(work, step, smooth, spent)
        if time.monotonic() - saved > plan.save_seconds:
            save(work, model, optim, step + 1, spent)
            saved = time.monotonic()
    save(work, model, optim, plan.steps, before + time.monotonic() - began)


def log(work: Path, step: int, loss: float, seconds: float) -> None:
    line = json.dumps({"step": step, "loss": round(loss, 4), "seconds": round(seconds, 1)})
    with (work / "log.jsonl").open("a") as out:
        out.write(line + "\n")
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory of the checkpoint and tokenizer")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    train(args.work, Plan(steps=args.steps))


if __name__ == "__main__":
    main()
