"""The demo model answers through a real process: the first thing a new user sees."""

from __future__ import annotations

from pathlib import Path

from tests.sysinfer.process import Unit

DEMO = Path(__file__).resolve().parents[2] / "kernels/demo/syshax-demo.gguf"


def test_demo_model_answers_chat_and_stops_cleanly(tmp_path: Path) -> None:
    with Unit.start(DEMO, tmp_path, "--threads", "1") as unit:
        body = {"messages": [{"role": "user", "content": "What is a glacier?"}], "temperature": 0, "max_tokens": 60}
        first = unit.post("/v1/chat/completions", body)
        assert first["choices"][0]["message"]["content"]
        assert first["choices"][0]["finish_reason"] == "stop"
        assert unit.post("/v1/chat/completions", body)["choices"] == first["choices"]
        assert unit.stop() == 0
