"""The structs and calls of kernels/include/syshax/pool.h for ctypes; field for field, in its order."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar

from syshax_contract.pool_pages import STATS_FIELDS
from syshax_kernels.library import Prototypes


class SizedStruct(ctypes.Structure):
    """An argument struct of the native core: its first field is its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(type(self)), **fields)


class GeometryStruct(SizedStruct):
    _fields_: ClassVar[list[Any]] = [
        ("size", c_uint32),
        ("n_layers", c_uint32),
        ("n_kv_heads", c_uint32),
        ("head_size", c_uint32),
        ("wire_type", c_int32),
        ("model_id", c_uint8 * 32),
        ("block_size", c_uint32),
        ("tp_size", c_uint32),
        ("kv_type", c_int32),
    ]


class CreateArgs(SizedStruct):
    _fields_: ClassVar[list[Any]] = [
        ("size", c_uint32),
        ("n_chunks", c_uint32),
        ("n_tickets", c_uint32),
        ("max_tokens", c_uint32),
        ("path", c_char_p),
        ("geometry", GeometryStruct),
    ]


class ViewStruct(SizedStruct):
    _fields_: ClassVar[list[Any]] = [
        ("size", c_uint32),
        ("slot", c_uint32),
        ("n_tokens", c_uint32),
        ("n_chunks", c_uint32),
        ("generation", c_uint64),
        ("word", c_uint64),
        ("deadline_ns", c_uint64),
        ("ready_deadline_ns", c_uint64),
    ]


class InfoStruct(SizedStruct):
    _fields_: ClassVar[list[Any]] = [
        ("size", c_uint32),
        ("format", c_uint32),
        ("n_chunks", c_uint32),
        ("n_tickets", c_uint32),
        ("max_tokens", c_uint32),
        ("chunks_free", c_uint32),
        ("tickets_free", c_uint32),
        ("generation", c_uint64),
        ("chunk_bytes", c_uint64),
        ("chunks", c_void_p),
        ("chunks_size", c_uint64),
        ("geometry", GeometryStruct),
    ]


_NUMBERS = {"H": c_uint16, "I": c_uint32, "Q": c_uint64}


class StatsStruct(SizedStruct):
    _fields_: ClassVar[list[Any]] = [(name, _NUMBERS[code]) for name, code in STATS_FIELDS]


_POOL = c_void_p
_SLOT = c_uint32
_ID = c_char_p
_U32_OUT = POINTER(c_uint32)

PROTOTYPES: Prototypes = {
    "sx_pool_file_bytes": [POINTER(CreateArgs), POINTER(c_uint64)],
    "sx_pool_create": [POINTER(CreateArgs), POINTER(_POOL)],
    "sx_pool_begin": [_POOL, _ID, c_uint64, _U32_OUT],
    "sx_pool_append": [_POOL, _SLOT, c_void_p, c_uint32],
    "sx_pool_chunk": [_POOL, _SLOT, c_uint32, POINTER(c_void_p), POINTER(c_uint64)],
    "sx_pool_seal": [_POOL, _SLOT, c_uint32, c_uint32, c_uint32],
    "sx_pool_seal_as": [_POOL, _SLOT, c_uint32, c_uint32, c_uint32, c_uint32],
    "sx_pool_verify": [_POOL, _SLOT, c_uint32, c_uint32, c_uint32],
    "sx_pool_publish": [_POOL, _SLOT, c_uint32],
    "sx_pool_fail": [_POOL, _SLOT],
    "sx_pool_free_ticket": [_POOL, _SLOT],
    "sx_pool_find": [_POOL, _ID, _U32_OUT, _U32_OUT],
    "sx_pool_reap": [_POOL, c_uint64, _U32_OUT],
    "sx_pool_join": [c_char_p, POINTER(_POOL)],
    "sx_pool_open": [c_char_p, POINTER(GeometryStruct), POINTER(_POOL)],
    "sx_pool_pin": [_POOL, _ID, c_uint64, c_uint64, POINTER(ViewStruct)],
    "sx_pool_tokens": [_POOL, POINTER(ViewStruct), c_uint32, c_uint32, c_void_p],
    "sx_pool_read": [_POOL, POINTER(ViewStruct), c_uint32, POINTER(c_void_p), POINTER(c_uint64)],
    "sx_pool_locate": [_POOL, POINTER(ViewStruct), c_uint32, POINTER(c_void_p), POINTER(c_uint64), _U32_OUT],
    "sx_pool_match": [_POOL, POINTER(ViewStruct), c_uint32, c_uint32, c_uint32],
    "sx_pool_check": [_POOL, POINTER(ViewStruct)],
    "sx_pool_release": [_POOL, POINTER(ViewStruct), c_uint32],
    "sx_pool_describe": [_POOL, POINTER(InfoStruct)],
    "sx_pool_write_stats": [_POOL, POINTER(StatsStruct)],
    "sx_pool_read_stats": [_POOL, POINTER(StatsStruct)],
}
