"""Write a commented syshax.yaml for the hardware found here.

Without --model it serves the demo model that comes with sysHAX, and shows, commented out, what fits this machine.
An existing file is kept, unless --force is given; then the old one stays beside it as syshax.yaml.old.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from syshaxd.config.edit import write
from syshaxd.config.embedded import DEMO_MODEL, DEMO_NAME, checkout, private_paths
from syshaxd.config.emit import scalar_text
from syshaxd.config.load import DEFAULT_DIR, ENVIRONMENT, MAIN_FILE, loads
from syshaxd.topology import format_cpu_list

from .exits import OK, USAGE, CommandError
from .hardware import Hardware, find_hardware
from .options import add_config

INSTALLED_MODEL = Path("/usr/share/syshax/models/syshax-demo.gguf")
IMAGES = {
    "nvidia": "docker.io/vllm/vllm-openai:v0.32.0",
    "ascend": "quay.io/ascend/vllm-ascend:v0.23.0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--model", metavar="PATH", help="GGUF file or Hugging Face folder to serve")
    parser.add_argument("--name", help="name clients use for it (default: that of the file or folder)")
    parser.add_argument("--force", action="store_true", help="replace an existing syshax.yaml")
    parser.add_argument("--print", action="store_true", help="print it instead of writing it")
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Look, compose, check, write."""
    if args.model and not os.path.exists(args.model):
        raise CommandError(f"--model {args.model}: does not exist", USAGE)
    folder = Path(args.config or os.environ.get(ENVIRONMENT) or DEFAULT_DIR)
    file = folder / MAIN_FILE
    if os.path.exists(file) and not (args.force or args.print):
        print(f"{file} exists and is kept; --force replaces it, --print shows what would be written")
        return OK
    hardware = find_hardware()
    text = compose(hardware, args.model or "", args.name or "")
    loads(text, str(file))  # what is written has passed the same check as everything else
    if args.print:
        sys.stdout.write(text)
        return OK
    _write(folder, file, text)
    print(f"wrote {file} for {summary(hardware)}")
    print("next: syshax check-config, then systemctl start syshaxd (or: syshax run)")
    return OK


def _write(folder: Path, file: Path, text: str) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if file.exists():
            os.replace(file, file.with_suffix(".yaml.old"))
    except OSError as err:
        message = f"can't write to {folder}: {err.strerror}; use sudo, or --config with a folder of your own"
        raise CommandError(message) from err
    write(file, text)


def summary(hardware: Hardware) -> str:
    """One line about the host."""
    nodes = hardware.topology.nodes
    cpus = len(hardware.topology.cpus)
    parts = [f"{hardware.cpu}, {cpus} CPUs on {len(nodes)} NUMA node{'s' if len(nodes) > 1 else ''}"]
    if hardware.devices:
        parts.append(f"{len(hardware.devices)} {hardware.accelerator} devices")
    return ", ".join([*parts, hardware.engine or "no container engine"])


def compose(hardware: Hardware, model: str, name: str) -> str:
    """The file's text."""
    path = str(Path(model).resolve()) if model else str(_demo())
    served = name or (Path(path).name.replace(".gguf", "") if model else DEMO_NAME)
    with_engine = bool(model) and Path(path).is_dir() and bool(hardware.engine) and bool(hardware.devices)
    units = _vllm_units(hardware) if with_engine else _sysinfer_units(hardware)
    lines = [*_head(hardware), *_front(), "", "models:", f"  default: {scalar_text(served)}   # the name clients use"]
    lines += [f"  path: {scalar_text(path)}", "", *units]
    if not with_engine and hardware.devices:
        lines += ["", *_proposal(hardware)]
    return "\n".join(lines) + "\n" + _tail()


def _tail() -> str:
    root = checkout()
    return f"\n# This is a source checkout: its own socket and folders.\n{private_paths(root)}" if root else ""


def _demo() -> Path:
    root = checkout()
    return root / DEMO_MODEL if root else INSTALLED_MODEL


def _head(hardware: Hardware) -> list[str]:
    nodes = "; ".join(f"node {node.id}: {format_cpu_list(node.cpus)}" for node in hardware.topology.nodes)
    return [
        f"# Written by `syshax init` for: {summary(hardware)}.",
        f"# CPUs by NUMA node: {nodes}.",
        "# Test with `syshax check-config`, apply with `systemctl reload syshaxd`. All keys: syshax.yaml(5).",
        "",
    ]


def _front() -> list[str]:
    return [
        "services:",
        "  conductor:",
        "    host: 127.0.0.1        # another address needs api_keys_file",
        "    port: 8010",
    ]


def _sysinfer_units(hardware: Hardware) -> list[str]:
    first = "" if len(hardware.topology.cpus) > 1 else "\n    cpu: {affinity: none}   # one CPU is all there is"
    return [
        "# The built-in CPU engine on both sides; each unit gets CPUs of its own.",
        "units:",
        f"  gpu:\n    role: accelerator\n    kind: sysinfer{first}",
        f"  cpu:\n    role: cpu\n    kind: sysinfer{first}",
    ]


def _vllm_units(hardware: Hardware) -> list[str]:
    devices = ", ".join(str(number) for number in hardware.devices)
    return [
        "units:",
        "  gpu:",
        "    role: accelerator",
        "    kind: vllm",
        f"    backend: {hardware.engine}",
        f"    accelerator: {hardware.accelerator}",
        f"    device_ids: [{devices}]",
        f"    tensor_parallel_size: {_power(len(hardware.devices))}",
        "    container:",
        f"      image: {IMAGES[hardware.accelerator]}   # name the version you have tested",
        "      ipc: shareable",
        "      shm_size: 16g",
        "  cpu:",
        "    role: cpu",
        "    kind: sysinfer         # reads Hugging Face folders and GGUF files",
        "    quantize: q8_0",
    ]


def _power(count: int) -> int:
    """The largest power of two up to `count`: attention heads divide by it."""
    return 1 << (count.bit_length() - 1)


def _proposal(hardware: Hardware) -> list[str]:
    engine = hardware.engine or "podman"
    units = _vllm_units(Hardware(hardware.cpu, hardware.topology, hardware.nvidia, hardware.ascend, engine))
    return [
        f"# Found: {len(hardware.devices)} {hardware.accelerator} devices. To serve from them, set models.path to a",
        "# Hugging Face folder (or run `syshax init --force --model FOLDER`) and replace the units above by:",
        *(f"# {line}" for line in units),
    ]
