"""The model: Llama (RMSNorm, rotary positions, grouped-query attention, SwiGLU), embeddings tied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; every matrix's inner dimension is a multiple of 64."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 7
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 704
    context: int = 2048
    epsilon: float = 1e-5
    theta: float = 10000.0

    @property
    def head(self) -> int:
        return self.width // self.heads


def rotary(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (context, head), for pairs (i, i + head/2) as in Hugging Face's Llama."""
    rates = shape.theta ** (-torch.arange(0, shape.head, 2) / shape.head)
    angles = torch.outer(torch.arange(shape.context), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x of shape (batch, heads, length, head)."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Attention(nn.Module):  # type: ignore[misc, unused-ignore]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.width, bias=False)
        self.k = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.v = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.shape.head)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=True)
        mixed: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):  # type: ignore[misc, unused-ignore]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.attn = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.epsilon)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        mixed: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return mixed


class Llama(nn.Module):  # type: ignore[misc, unused-ignore]
    """Maps token ids (batch, length) to final hidden states (batch, length, width)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, shape.epsilon)
        cos, sin = rotary(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        """Small weights; what adds to the residual starts smaller still, as in GPT-2."""
        if isinstance(module, (nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=0.03)
        if isinstance(module, Block):
            for late in (module.attn.output, module.down):
                nn.init.normal_(late.weight, std=0.03 / (2 * self.shape.layers) ** 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        final: Tensor = self.norm(x)
        return final

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token; the embedding is also the output matrix."""
        return F.linear(hidden, self.embed.weight)


def greedy(model: Llama, ids: list[int], end: int, limit: int = 64) -> list[int]:
    """The likeliest continuation of `ids`, without `end`; recomputes the prefix, good for short text only."""
    said: list[int] = []
    with torch.no_grad():
        while len(said) < limit:
            last = model(torch.tensor([ids + said]))[0, -1]
            token = int(model.logits(last).argmax())
            if token == end:
                break
            said.append(token)
    return said
