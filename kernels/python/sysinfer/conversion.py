"""What holding a model's matrices in another type than the file's costs: bytes, and how far weights move."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from syshax_kernels.types import DType
from sysinfer.gguf_tensors import Tensor
from sysinfer.quant import dequantise, rounded

log = logging.getLogger("sysinfer.weights")

SAMPLE_ROWS = 32  # of a tensor, that its error is measured on
TELLS = 0.01  # an error of more than this is worth a warning


@dataclass
class _Cost:
    tensors: int = 0
    before: int = 0  # bytes
    after: int = 0
    error: float = 0.0  # sums of squares
    size: float = 0.0


class Costs:
    """Adds up what becomes of a file's matrices."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, DType], _Cost] = {}

    def add(self, tensor: Tensor, kind: DType, held_bytes: int) -> None:
        """A matrix of the file, held as `kind` in so many bytes."""
        if tensor.type == kind:
            return
        cost = self._costs.setdefault((tensor.type_name, kind), _Cost())
        cost.tensors += 1
        cost.before += tensor.data.size
        cost.after += held_bytes
        sample = dequantise(tensor.data[:: max(len(tensor.data) // SAMPLE_ROWS, 1)], tensor.type)
        cost.size += float(np.square(sample, dtype=np.float64).sum())
        cost.error += float(np.square(rounded(sample, kind) - sample, dtype=np.float64).sum())

    def tell(self) -> None:
        """One log line for each kind of conversion."""
        for (source, kind), cost in self._costs.items():
            error = (cost.error / cost.size) ** 0.5 if cost.size > 0 else 0.0
            log.log(
                logging.WARNING if error > TELLS else logging.INFO,
                "%d matrices of %s are held as %s: %.3g MiB become %.3g, and weights move by %.2f %% of their size%s",
                cost.tensors, source, kind.name, cost.before / 2**20, cost.after / 2**20, 100 * error,
                ": answers get worse (docs/sysinfer.md has what it costs a real model)" if error > TELLS else "",
            )  # fmt: skip
