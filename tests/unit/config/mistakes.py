"""Faulty configurations, one YAML text each; mistakes.golden holds what check-config says about them.

`python3 -m tests.unit.config.mistakes > tests/unit/config/mistakes.golden` writes it anew: read the difference.
"""

from __future__ import annotations

from syshaxd.config import loads
from syshaxd.errors import ConfigError

GOOD = "models: {path: /m.gguf}\nunits: {cpu: {}}\n"

MISTAKES: dict[str, str] = {
    # YAML itself
    "tab": GOOD + "pd:\n\tenabled: true\n",
    "tab after colon": GOOD + "log:\n  level:\tinfo\n",
    "second colon": GOOD + "log: level: info\n",
    "no colon": GOOD + "log\n",
    "indentation": "units:\n    cpu: {model_path: /m}\n  gpu: {model_path: /m}\n",
    "open list": "units: {cpu: {model_path: /m, command: [a, b}}\n",
    "open quote": 'models: {path: "/m.gguf}\nunits: {cpu: {}}\n',
    "open brace": "units: {cpu: {model_path: /m}\n",
    "at sign": GOOD + "log: {level: @info}\n",
    "duplicate key": GOOD + "log:\n  level: info\n  level: debug\n",
    "duplicate section": GOOD + "units: {gpu: {model_path: /m}}\n",
    "yes": GOOD + "pd: {enabled: yes}\n",
    "off": GOOD + "log: {access: off}\n",
    "on as a key": "units: {cpu: {model_path: /m, env: {on: 1}}}\n",
    "sexagesimal": "units: {cpu: {model_path: /m, env: {WHEN: 12:30}}}\n",
    "octal": "services: {conductor: {port: 08010}}\n" + GOOD,
    "not a number": GOOD + "scheduler: {safety: .nan}\n",
    "huge number": GOOD + "limits: {max_queue: 1e999}\n",
    "tag": GOOD + "log: {level: !!python/name:os.system info}\n",
    "merge key": "units:\n  gpu: &a {model_path: /m}\n  cpu:\n    <<: *a\n    role: cpu\n",
    "recursive alias": "units: &u {cpu: {model_path: /m, env: {A: *u}}}\n",
    "unknown alias": "units: {cpu: {model_path: *where}}\n",
    "two documents": GOOD + "---\nlog: {level: info}\n",
    "list at the top": "- units\n",
    "word at the top": "units\n",
    "list as key": GOOD + "[a, b]: 1\n",
    "control character": GOOD + "log: {level: in\x07fo}\n",
    # keys
    "unknown key": GOOD + "services: {conductor: {prot: 8010}}\n",
    "unknown section": GOOD + "schedule: {decider: threshold}\n",
    "key in the wrong section": GOOD + "services: {conductor: {max_queue: 5}}\n",
    "old section": GOOD + "system: {request_timeout: 600}\n",
    "old decider": GOOD + "decider: {auto_pd_offload: true}\n",
    "key at the top": GOOD + "port: 8010\n",
    "nothing similar": GOOD + "monitor: {zzz: 1}\n",
    "both spellings": "services: {gpu: {port: 8001}}\nunits: {gpu: {model_path: /m}}\n",
    "args twice": "units: {cpu: {model_path: /m, args: [-x], extra_args: [-y]}}\n",
    "pool of units": "services: {gpu: [{port: 7001}, {port: 7003}]}\n" + GOOD,
    "unit name": "units: {GPU0: {role: accelerator, model_path: /m}}\n",
    "env name": "units: {cpu: {model_path: /m, env: {2X: 1}}}\n",
    "tier name": GOOD + "scheduler: {slo: {prioritty: {ttft: 1s}}}\n",
    # values
    "word for a number": GOOD + "limits: {max_queue: many}\n",
    "number for a word": "units: {cpu: {model_path: /m, kind: 7}}\n",
    "fraction": GOOD + "limits: {max_queue: 2.5}\n",
    "port too large": GOOD + "services: {conductor: {port: 80100}}\n",
    "negative": GOOD + "limits: {max_in_flight: -1}\n",
    "nothing": GOOD + "services: {conductor: {port: }}\n",
    "quoted true": GOOD + 'pd: {enabled: "true"}\n',
    "list for a word": GOOD + "log: {level: [info]}\n",
    "value for a section": GOOD + "pd: 3\n",
    "word for a list": "units: {cpu: {model_path: /m, command: run me}}\n",
    "enumeration": "units: {gpu: {model_path: /m, backend: podmna}}\n",
    "enumeration in capitals": "units: {gpu: {model_path: /m, kind: VLLM}}\n",
    "duration": GOOD + "limits: {queue_timeout: 5 minutes}\n",
    "duration too short": GOOD + "monitor: {interval: 1ms}\n",
    "size": GOOD + "pd: {pool_size: big}\n",
    "share over one": GOOD + "pd: {top1_agreement: 90}\n",
    "cpu list": "units: {cpu: {model_path: /m, cpu: {affinity: 0..3}}}\n",
    "backward cpu list": "units: {cpu: {model_path: /m, cpu: {affinity: 7-3}}}\n",
    "relative pool": GOOD + "pd: {pool_dir: shm/syshax}\n",
    "url without scheme": "units: {gpu: {backend: external, url: 127.0.0.1:8001}}\n",
    # rules that join keys
    "no units": "models: {default: x}\n",
    "empty units": "units: {}\n",
    "role missing": "units: {left: {model_path: /m}}\n",
    "no model": "units: {cpu: {}}\n",
    "equal ports": "services: {gpu: {port: 8001}, cpu: {port: 8001}}\nmodels: {path: /m}\n",
    "port of the front": GOOD + "services: {conductor: {port: 8002}, gpu: {port: 8002}}\n",
    "open to all": GOOD + "services: {conductor: {host: 0.0.0.0}}\n",
    "unit open to all": "units: {cpu: {model_path: /m, host: '::'}}\n",
    "water marks": GOOD + "pd: {return_below: 0.95}\n",
    "timeouts": GOOD + "limits: {request_timeout: 10s, queue_timeout: 20s, first_token_timeout: 5s}\n",
    "external without url": "units: {gpu: {backend: external}}\n",
    "dead key on external": "units: {gpu: {backend: external, port: 8001, env: {A: 1}}}\n",
    "url on own unit": "units: {gpu: {model_path: /m, url: 'http://127.0.0.1:1'}}\n",
    "no image": "units: {gpu: {model_path: /m, kind: vllm, backend: podman}}\n",
    "container section for a process": "units: {gpu: {model_path: /m, container: {image: x}}}\n",
    "shm with host ipc": (
        "units: {gpu: {model_path: /m, backend: docker, container: {image: x, ipc: host, shm_size: 1g}}}\n"
    ),
    "ipc of nobody": "units: {gpu: {model_path: /m, backend: docker, container: {image: x, ipc: 'unit:cpu'}}}\n",
    "nixl in a container's own network": (
        "kv: {transport: nixl}\nunits: {gpu: {kind: vllm, model_path: /m, backend: podman, container: {image: xy}}}\n"
    ),
    "side channel of another's unit": "units: {gpu: {backend: external, url: http://h:1, side_channel_port: 5600}}\n",
    "ipc of a private one": (
        "models: {path: /m}\nunits:\n  gpu: {backend: docker, container: {image: x}}\n"
        "  cpu: {backend: docker, container: {image: x, ipc: 'unit:gpu'}}\n"
    ),
    "shm too small to share": (
        "models: {path: /m}\nunits:\n  gpu: {backend: docker, container: {image: x, ipc: shareable, shm_size: 64m}}\n"
        "  cpu: {backend: docker, container: {image: x, ipc: 'unit:gpu'}}\n"
    ),
    "container name": (
        "models: {path: /m}\nunits:\n  gpu: {backend: docker, container: {image: x}}\n"
        "  cpu: {backend: docker, container: {image: x, name: syshax-gpu}}\n"
    ),
    "threads": "units: {cpu: {model_path: /m, cpu: {affinity: 0-3, threads: 8}}}\n",
    "shared cpus": "models: {path: /m}\nunits: {gpu: {cpu: {affinity: 0-3}}, cpu: {cpu: {affinity: '2,4'}}}\n",
    "reserved without auto": "units: {cpu: {model_path: /m, cpu: {affinity: none, reserved: 0-1}}}\n",
    "accelerator on cpu role": "units: {cpu: {model_path: /m, kind: vllm, accelerator: nvidia}}\n",
    "sysinfer on nvidia": "units: {gpu: {model_path: /m, accelerator: nvidia}}\n",
    "openai without command": "units: {gpu: {model_path: /m, kind: openai}}\n",
    "quantize on npu": "units: {gpu: {model_path: /m, kind: vllm, accelerator: ascend, quantize: q8_0}}\n",
    "packed cache for vllm": "units: {cpu: {model_path: /m, kind: vllm, packed_cache: /c}}\n",
    "devices without accelerator": "units: {gpu: {model_path: /m, kind: vllm, device_ids: [0]}}\n",
    "too few devices": (
        "units: {gpu: {model_path: /m, kind: vllm, accelerator: nvidia, device_ids: [0], tensor_parallel_size: 2}}\n"
    ),
    "backoff": "units: {cpu: {model_path: /m, restart: {backoff: 10m}}}\n",
    "many at once": (
        "services: {conductor: {prot: 1, host: 10.0.0.1}}\nmodels: {default: yes}\n"
        "units: {cpu: {kind: vlm, start_timeout: soon}, gpu: {model_path: /m, port: 70000}}\npd: 7\nlgo: {}\n"
    ),
}


def complaints(text: str) -> str:
    """What the loader says about a text; "" where it accepts it."""
    try:
        loads(text, "syshax.yaml")
    except ConfigError as err:
        return str(err)
    return ""


if __name__ == "__main__":
    print("\n".join(f"== {name}\n{complaints(text)}\n" for name, text in MISTAKES.items()), end="")
