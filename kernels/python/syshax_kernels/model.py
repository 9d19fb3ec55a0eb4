"""A whole decoder model in the native core: weights, paged KV cache, forward passes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from syshax_kernels.buffers import Buffer, as_bytes, expect_bytes
from syshax_kernels.context import Context
from syshax_kernels.library import Prototypes
from syshax_kernels.matrix import row_bytes
from syshax_kernels.types import BLOCKS, Activation, DType, LayerRope, Role

_u32 = ctypes.c_uint32
_floats = ctypes.POINTER(ctypes.c_float)


class _ModelArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_layers", _u32),
        ("d_model", _u32),
        ("n_heads", _u32),
        ("n_kv_heads", _u32),
        ("head_dim", _u32),
        ("d_ff", _u32),
        ("vocab", _u32),
        ("rope_dims", _u32),
        ("rope_freqs", _floats),
        ("norm_eps", ctypes.c_float),
        ("max_context", _u32),
        ("sliding_window", _u32),
        ("kv_blocks", _u32),
        ("kv_block_size", _u32),
        ("kv_type", ctypes.c_int32),
        ("max_batch_tokens", _u32),
        ("alibi_slopes", _floats),
        ("layer_windows", ctypes.POINTER(_u32)),
        ("layer_ropes", ctypes.POINTER(_u32)),
        ("rope_freqs_local", _floats),
        ("rope_magnitude", ctypes.c_float),
        ("embedding_scale", ctypes.c_float),
        ("residual_scale", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
        ("logit_scale", ctypes.c_float),
        ("attention_softcap", ctypes.c_float),
        ("logit_softcap", ctypes.c_float),
        ("activation", ctypes.c_int32),
        ("plain_mlp", _u32),
    ]


class _TensorArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("role", ctypes.c_int32),
        ("layer", _u32),
        ("src_type", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("rows", _u32),
        ("cols", _u32),
        ("data", ctypes.c_void_p),
        ("packed", _u32),
    ]


class _PackedArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("role", ctypes.c_int32),
        ("layer", _u32),
        ("type", ctypes.c_int32),
        ("rows", _u32),
        ("cols", _u32),
        ("bytes", ctypes.c_uint64),
        ("out", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
    ]


class _Seq(ctypes.Structure):
    _fields_ = [(n, _u32) for n in ("first_token", "n_tokens", "position", "first_block", "n_blocks", "logits")]


class _ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_seqs", _u32),
        ("seqs", ctypes.POINTER(_Seq)),
        ("tokens", ctypes.c_void_p),
        ("n_tokens", _u32),
        ("n_block_entries", _u32),
        ("block_table", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("logits_capacity", ctypes.c_uint64),
        ("n_logit_rows", _u32),
    ]


class _KvCopyArgs(ctypes.Structure):
    _fields_ = [
        ("size", _u32),
        ("n_blocks", _u32),
        ("block_table", ctypes.c_void_p),
        ("first_token", _u32),
        ("n_tokens", _u32),
        ("chunk_tokens", _u32),
        ("chunk_first", _u32),
        ("wire_type", ctypes.c_int32),
        ("head_first", _u32),
        ("head_count", _u32),
        ("chunk", ctypes.c_void_p),
        ("crc", ctypes.POINTER(_u32)),
    ]


_PROTOTYPES: Prototypes = {
    "sx_model_create": [ctypes.c_void_p, ctypes.POINTER(_ModelArgs), ctypes.POINTER(ctypes.c_void_p)],
    "sx_model_set_tensor": [ctypes.c_void_p, ctypes.POINTER(_TensorArgs)],
    "sx_model_get_packed": [ctypes.c_void_p, ctypes.POINTER(_PackedArgs)],
    "sx_model_finish": [ctypes.c_void_p],
    "sx_forward": [ctypes.c_void_p, ctypes.POINTER(_ForwardArgs)],
    "sx_kv_export": [ctypes.c_void_p, ctypes.POINTER(_KvCopyArgs)],
    "sx_kv_import": [ctypes.c_void_p, ctypes.POINTER(_KvCopyArgs)],
}


@dataclass(frozen=True)
class Recipe:
    """What the layers of a model do differently from llama's; 0 and empty mean: as llama."""

    layer_windows: Sequence[int] = ()
    """Tokens a layer sees, 0: all of them; two values at most. Empty: `sliding_window` of every layer."""
    layer_ropes: Sequence[LayerRope] = ()
    rope_freqs_local: Sequence[float] = ()
    """Inverse frequencies of the layers with LayerRope.LOCAL, as many as `rope_freqs`."""
    rope_magnitude: float = 0.0
    """Factor of cosine and sine of `rope_freqs`."""
    embedding_scale: float = 0.0
    residual_scale: float = 0.0
    attention_scale: float = 0.0
    """Factor of the scores; 0: 1 / sqrt(head_dim)."""
    logit_scale: float = 0.0
    attention_softcap: float = 0.0
    """c: scores become c * tanh(score / c); 0: none."""
    logit_softcap: float = 0.0
    activation: Activation = Activation.SILU
    plain_mlp: bool = False
    """No gate: down(activation(up))."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder model and of its KV cache; limits are stated at sx_model_args in kernels.h."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab: int
    rope_freqs: Sequence[float]
    """Inverse frequencies (rope_dims / 2 of them), scaling already applied."""
    norm_eps: float
    max_context: int
    kv_blocks: int
    kv_block_size: int = 16
    kv_type: DType = DType.F16
    max_batch_tokens: int = 512
    sliding_window: int = 0
    alibi_slopes: Sequence[float] | None = None
    """One a head: ALiBi instead of the rotary embedding."""
    recipe: Recipe = Recipe()


@dataclass(frozen=True)
class Packed:
    """A tensor as a model holds it: tiles of 16 rows, or f32 for norms and biases (rows 1)."""

    role: Role
    layer: int
    kind: DType
    rows: int
    cols: int
    data: NDArray[numpy.uint8]


def packed_bytes(kind: DType, rows: int, cols: int) -> int:
    """Bytes of a packed tensor: rows in tiles of 16, columns in superblocks; one row alone is not in tiles."""
    if rows == 1:
        return 4 * cols
    blocks = BLOCKS[kind]
    return -(-rows // 16) * -(-cols // blocks.step) * blocks.step_bytes


@dataclass(frozen=True)
class Seq:
    """One sequence's part of a step: its new tokens (a prefill chunk or one decode row) and where its KV lies."""

    tokens: Sequence[int]
    position: int
    """Tokens of it already in the KV cache."""
    blocks: Sequence[int]
    """Its KV blocks in order, enough for position + len(tokens) tokens."""
    logits: int = 1
    """0: none wanted, 1: of the last token, 2: of every token."""


@dataclass(frozen=True)
class KvSlice:
    """Some tokens of a sequence, and where they lie in a handoff chunk."""

    blocks: Sequence[int]
    first_token: int
    n_tokens: int
    chunk_tokens: int
    chunk_first: int = 0
    wire_type: DType = DType.F16
    head_first: int = 0
    head_count: int = 0
    """0: all kv heads from head_first on."""


class Model:
    """Weights, KV cache and working memory. One call at a time."""

    def __init__(self, context: Context, shape: ModelShape) -> None:
        """Reserves the KV cache; raises KernelError for sizes the core doesn't take."""
        self.shape = shape
        self._context = context
        self._lib = context.library
        self._lib.declare(_PROTOTYPES)
        self._lib.calls.sx_model_free.argtypes = [ctypes.c_void_p]
        self._lib.calls.sx_model_free.restype = None
        self._lib.calls.sx_crc32c.argtypes = [_u32, ctypes.c_void_p, ctypes.c_uint64]
        self._lib.calls.sx_crc32c.restype = _u32
        args = _model_args(shape)
        self._handle = ctypes.c_void_p()
        self._lib.check(self._lib.calls.sx_model_create(context.handle, ctypes.byref(args), ctypes.byref(self._handle)))

    def set_tensor(
        self, role: Role, layer: int, src_type: DType, kind: DType, rows: int, cols: int, data: Buffer
    ) -> None:
        """Packs one tensor; `data` (row-major, GGUF block order) is read during the call only.

        Norms and biases: rows = 1, held as f32 whatever `kind` is. Raises KernelError for a wrong shape or type.
        """
        source = as_bytes(data)
        expect_bytes(source, rows * row_bytes(src_type, cols), f"tensor {role.name} of layer {layer}")
        args = _TensorArgs(ctypes.sizeof(_TensorArgs), role, layer, src_type, kind, rows, cols, source.ctypes.data)
        self._lib.check(self._lib.calls.sx_model_set_tensor(self._handle, ctypes.byref(args)))

    def set_packed(self, tensor: Packed) -> None:
        """Takes a tensor that `get_packed` of a model of the same shape gave, without packing it again."""
        role, layer, kind, rows, cols = tensor.role, tensor.layer, tensor.kind, tensor.rows, tensor.cols
        expect_bytes(tensor.data, packed_bytes(kind, rows, cols), f"packed {role.name} of layer {layer}")
        size = ctypes.sizeof(_TensorArgs)
        args = _TensorArgs(size, role, layer, kind, kind, rows, cols, tensor.data.ctypes.data, 1)
        self._lib.check(self._lib.calls.sx_model_set_tensor(self._handle, ctypes.byref(args)))

    def get_packed(self, role: Role, layer: int = 0) -> Packed:
        """A tensor as it is held. Raises NotFoundError where the model has none."""
        args = _PackedArgs(ctypes.sizeof(_PackedArgs), role, layer)
        self._lib.check(self._lib.calls.sx_model_get_packed(self._handle, ctypes.byref(args)))
        data = numpy.empty(args.bytes, numpy.uint8)
        args.out, args.capacity = data.ctypes.data, data.size
        self._lib.check(self._lib.calls.sx_model_get_packed(self._handle, ctypes.byref(args)))
        return Packed(role, layer, DType(args.type), args.rows, args.cols, data)

    def checksum(self, data: NDArray[numpy.uint8]) -> int:
        """CRC-32C of contiguous bytes."""
        return int(self._lib.calls.sx_crc32c(0, data.ctypes.data, data.size))

    def finish(self) -> None:
        """Checks that every tensor is there; after it the model takes forward passes."""
        self._lib.check(self._lib.calls.sx_model_finish(self._handle))

    def forward(self, seqs: Sequence[Seq], out: NDArray[numpy.float32] | None = None) -> NDArray[numpy.float32]:
        """One step of continuous batching: logits [rows wanted, vocab] in order of sequences and tokens.

        `out`, where given, is a contiguous f32 array of at least that many rows; the part used is returned.
        The interpreter lock is released meanwhile. Raises KernelError when the batch doesn't fit the model.
        """
        wanted = sum(len(s.tokens) if s.logits == 2 else s.logits for s in seqs)
        result = numpy.empty((wanted, self.shape.vocab), numpy.float32) if out is None else out[:wanted]
        if result.shape != (wanted, self.shape.vocab) or result.dtype != numpy.float32 or not result.flags.c_contiguous:
            raise ValueError(f"out: expected contiguous f32 [{wanted} or more, {self.shape.vocab}]")
        table = numpy.array([b for s in seqs for b in s.blocks], dtype=numpy.int32)
        tokens = numpy.array([t for s in seqs for t in s.tokens], dtype=numpy.int32)
        args = _ForwardArgs(
            ctypes.sizeof(_ForwardArgs),
            len(seqs),
            _seq_array(seqs),
            tokens.ctypes.data,
            len(tokens),
            len(table),
            table.ctypes.data,
            result.ctypes.data,
            result.size,
            0,
        )
        self._lib.check(self._lib.calls.sx_forward(self._handle, ctypes.byref(args)))
        return result

    def export_kv(self, part: KvSlice, chunk: NDArray[numpy.uint8]) -> int:
        """Writes the slice's KV into `chunk`: [layer][K,V][chunk_tokens][kv head][head_dim] of the wire type.

        Returns crc32c over what it has written, in the chunk's order: what a seal holds.
        """
        return self._copy_kv("sx_kv_export", part, chunk)

    def import_kv(self, part: KvSlice, chunk: NDArray[numpy.uint8]) -> int:
        """Reads the slice's KV from `chunk` into the cache, converting to its type; crc32c of what it has read."""
        return self._copy_kv("sx_kv_import", part, chunk)

    def chunk_bytes(self, chunk_tokens: int, wire_type: DType) -> int:
        """Bytes of a handoff chunk of this model."""
        s = self.shape
        return s.n_layers * 2 * chunk_tokens * s.n_kv_heads * s.head_dim * (4 if wire_type == DType.F32 else 2)

    def _copy_kv(self, call: str, part: KvSlice, chunk: NDArray[numpy.uint8]) -> int:
        expect_bytes(as_bytes(chunk), self.chunk_bytes(part.chunk_tokens, part.wire_type), "chunk")
        table, crc = numpy.array(part.blocks, dtype=numpy.int32), _u32()
        args = _KvCopyArgs(
            ctypes.sizeof(_KvCopyArgs),
            len(table),
            table.ctypes.data,
            part.first_token,
            part.n_tokens,
            part.chunk_tokens,
            part.chunk_first,
            part.wire_type,
            part.head_first,
            part.head_count,
            chunk.ctypes.data,
            ctypes.pointer(crc),
        )
        self._lib.check(getattr(self._lib.calls, call)(self._handle, ctypes.byref(args)))
        return crc.value

    def close(self) -> None:
        """Frees weights and KV cache. May be called twice."""
        if self._handle:
            self._lib.calls.sx_model_free(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _model_args(shape: ModelShape) -> _ModelArgs:
    slopes = shape.alibi_slopes
    if slopes is not None and len(slopes) != shape.n_heads:
        raise ValueError(f"alibi_slopes: expected one for each of {shape.n_heads} heads, got {len(slopes)}")
    recipe = shape.recipe
    for name in ("layer_windows", "layer_ropes"):
        if len(getattr(recipe, name)) not in (0, shape.n_layers):
            raise ValueError(f"{name}: expected one for each of {shape.n_layers} layers")
    if len(recipe.rope_freqs_local) not in (0, len(shape.rope_freqs)):
        raise ValueError(f"rope_freqs_local: expected {len(shape.rope_freqs)}, got {len(recipe.rope_freqs_local)}")
    return _ModelArgs(
        size=ctypes.sizeof(_ModelArgs),
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        d_ff=shape.d_ff,
        vocab=shape.vocab,
        rope_dims=2 * len(shape.rope_freqs),
        rope_freqs=_array(ctypes.c_float, shape.rope_freqs),
        norm_eps=shape.norm_eps,
        max_context=shape.max_context,
        sliding_window=shape.sliding_window,
        kv_blocks=shape.kv_blocks,
        kv_block_size=shape.kv_block_size,
        kv_type=shape.kv_type,
        max_batch_tokens=shape.max_batch_tokens,
        alibi_slopes=_array(ctypes.c_float, slopes or ()),
        layer_windows=_array(_u32, recipe.layer_windows),
        layer_ropes=_array(_u32, [int(r) for r in recipe.layer_ropes]),
        rope_freqs_local=_array(ctypes.c_float, recipe.rope_freqs_local),
        rope_magnitude=recipe.rope_magnitude,
        embedding_scale=recipe.embedding_scale,
        residual_scale=recipe.residual_scale,
        attention_scale=recipe.attention_scale,
        logit_scale=recipe.logit_scale,
        attention_softcap=recipe.attention_softcap,
        logit_softcap=recipe.logit_softcap,
        activation=recipe.activation,
        plain_mlp=recipe.plain_mlp,
    )


def _array(kind: Any, values: Sequence[Any]) -> Any:
    """A C array, None (NULL) where there are no values."""
    return (kind * len(values))(*values) if len(values) else None


def _seq_array(seqs: Sequence[Seq]) -> Any:
    array = (_Seq * max(1, len(seqs)))()
    token = block = 0
    for entry, seq in zip(array, seqs):
        entry.first_token, entry.n_tokens, entry.position = token, len(seq.tokens), seq.position
        entry.first_block, entry.n_blocks, entry.logits = block, len(seq.blocks), seq.logits
        token += len(seq.tokens)
        block += len(seq.blocks)
    return array
