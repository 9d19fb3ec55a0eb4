"""Blocks of the paged KV cache: allocation, sharing of equal prefixes, least recently used reuse.

A full block is known by the digest of every token up to its end, so that a new prompt finds the blocks of an equal
prefix (prefix caching as in vLLM). Free blocks keep their content until they are needed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

Digest = bytes

ROOT: Digest = b""


def chain(parent: Digest, tokens: Sequence[int]) -> Digest:
    """Digest of a full block that follows the block with digest `parent`."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


class BlockPool:
    """Owns the numbers 0 .. n_blocks - 1. A block is held (reference count > 0) or free; a free one may be cached."""

    def __init__(self, n_blocks: int, block_size: int, caching: bool = True) -> None:
        self.n_blocks, self.block_size = n_blocks, block_size
        self._caching = caching
        self._references = [0] * n_blocks
        self._digests: list[Digest | None] = [None] * n_blocks
        self._cached: dict[Digest, int] = {}
        # Free blocks in the order they will be reused: never used and forgotten ones first, then by time of release.
        self._free: "OrderedDict[int, None]" = OrderedDict((i, None) for i in range(n_blocks))

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_used(self) -> int:
        return self.n_blocks - len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with reference count 1, or None (and no change) where not so many are free."""
        if count > len(self._free):
            return None
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        digest, self._digests[block] = self._digests[block], None
        if digest is not None and self._cached.get(digest) == block:
            del self._cached[digest]

    def match(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Cached blocks that hold the first of `tokens`, at most `limit` tokens of them. Changes nothing."""
        found: list[int] = []
        digest, size = ROOT, self.block_size
        for start in range(0, limit - size + 1, size):
            digest = chain(digest, tokens[start : start + size])
            block = self._cached.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def free_after(self, matched: Sequence[int]) -> int:
        """Blocks that could still be allocated once `matched` are held."""
        return len(self._free) - sum(1 for b in matched if not self._references[b])

    def hold(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each of `blocks` (found by `match` just before)."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def remember(self, block: int, digest: Digest) -> None:
        """Notes that `block` is full and what it holds. The first of several equal blocks is the one found later."""
        if self._caching and self._digests[block] is None:
            self._digests[block] = digest
            self._cached.setdefault(digest, block)

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back one reference of each block; the end of a sequence becomes reusable before its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] < 0:
                raise AssertionError(f"block {block} released more often than held")
            if self._references[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)

    def references(self, block: int) -> int:
        return self._references[block]
