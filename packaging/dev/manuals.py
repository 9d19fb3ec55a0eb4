"""Write the manual pages and completions that come from the schema and the parsers. tests/style holds them current."""

from __future__ import annotations

import json
from pathlib import Path

import cli_docs
import config_man

from syshaxd.config.schema import schema

ROOT = Path(__file__).resolve().parents[2]


def generated() -> dict[Path, str]:
    """Path and text of every generated file."""
    texts = {"man/syshax.yaml.5": config_man.manual(json.dumps(schema())), **cli_docs.files()}
    return {ROOT / "packaging/rpm" / name: text for name, text in texts.items()}


def main() -> int:
    """Entry point."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
