"""Which configuration is meant: --config, then $SYSHAX_CONFIG, then /etc/syshax, then that of a fresh checkout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .embedded import checkout, embedded_default
from .load import DEFAULT_DIR, ENVIRONMENT, Document, Loaded, files_of, interpret, read
from .types import Config

EMBEDDED_NAME = "(embedded default)"


@dataclass(frozen=True)
class Source:
    """Where the configuration comes from. Reading it again gives what the files say then."""

    path: Path
    embedded: str = ""  # YAML text instead of the path

    def load(self) -> Config:
        """The configuration as it is now. ConfigError holds every problem."""
        return self.read().config

    def read(self) -> Loaded:
        """Like `load`, with the place of each value."""
        if self.embedded:
            return interpret([Document(EMBEDDED_NAME, self.embedded.encode())])
        return read(self.path)

    def __str__(self) -> str:
        return EMBEDDED_NAME if self.embedded else str(self.path)


def find_source(explicit: str | None, environ: Mapping[str, str], default_dir: str = DEFAULT_DIR) -> Source:
    """The source that is meant. `explicit` is --config: a folder or one file."""
    named = explicit or environ.get(ENVIRONMENT)
    if named:
        return Source(Path(named))
    folder = Path(default_dir)
    root = checkout()
    if root is not None and not (os.path.isdir(folder) and files_of(folder, [], [])):
        return Source(folder, embedded_default(root))
    return Source(folder)
