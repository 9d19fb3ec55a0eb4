# What a handoff costs: VLLM_VENV adds the plugin and a pair of vLLM units.
bench-handoff: $(TEST_STAMP) native  ## handoff: bandwidth against memcpy, TTFT of a split; VLLM_VENV=... adds vLLM
	$(PY) -m bench.handoff $(if $(wildcard $(VLLM_VENV)/bin/python),--vllm $(abspath $(VLLM_VENV))/bin/python)
.PHONY: bench-handoff
