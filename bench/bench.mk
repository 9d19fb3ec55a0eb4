# Benchmarks, one command each; every one saves what it measured in bench/results, with date, commit, command and
# machine (bench/origin.py). They want a machine that does nothing else.
.PHONY: bench-router routers-env bench-kernels bench-scheduler bench-handoff bench-supervision
WITH_VLLM = $(if $(wildcard $(VLLM_VENV)/bin/python),--vllm $(abspath $(VLLM_VENV))/bin/python)

# Against llama.cpp where LLAMA_VENV has llama-cpp-python and gguf, and vLLM where VLLM_VENV has it. Written after every
# process: RESUME=1 goes on from an interrupted one.
ROUNDS ?= 7
BENCH_CPUS ?= 0,1
BENCH_MODELS ?=
LLAMA_VENV ?=
RESUME ?=
bench-kernels: $(TEST_STAMP) native  ## kernels: share of bandwidth, batch, context; LLAMA_VENV=..., VLLM_VENV=... add peers
	@mkdir -p build/bench
	$(CXX) -O3 -std=c++17 -march=native -Wno-uninitialized -pthread bench/kernels/roofline.cpp -o build/bench/roofline
	$(PY) -m bench.kernels.run --rounds $(ROUNDS) --cpus $(BENCH_CPUS) $(WITH_VLLM) \
	    $(if $(LLAMA_VENV),--llama $(abspath $(LLAMA_VENV))/bin/python) $(if $(BENCH_MODELS),--models $(BENCH_MODELS)) \
	    $(if $(RESUME),--resume) --output bench/results/kernels.json

bench-scheduler: $(TEST_STAMP)  ## scheduler: the goals of docs/scheduling.md, simulated (1 hour); RESUME=1 goes on
	$(PY) -m bench.scheduler $(if $(RESUME),--resume)

bench-handoff: $(TEST_STAMP) native  ## handoff: bandwidth against memcpy, TTFT of a split; VLLM_VENV=... adds vLLM
	$(PY) -m bench.handoff $(WITH_VLLM)

# Needs root, podman and docker.
bench-supervision: $(TEST_STAMP) native  ## READY with adopted containers, cost of four idle units, on both engines
	$(PY) -m bench.supervision

# The other routers, each in an environment of its own; nginx comes with the system (apt-get install nginx-light).
ROUTERS := build/routers
routers-env:  ## vllm-router and LiteLLM, for bench-router
	@for name in vllm-router litellm; do test -x $(ROUTERS)/$$name/bin/python || $(PYTHON) -m venv $(ROUTERS)/$$name; done
	@$(ROUTERS)/vllm-router/bin/python -m pip install -q --disable-pip-version-check vllm-router
	@$(ROUTERS)/litellm/bin/python -m pip install -q --disable-pip-version-check 'litellm[proxy]'

bench-router: $(TEST_STAMP)  ## router: cost of a streamed token beside nginx, vllm-router, LiteLLM (25 minutes); QUICK=1
	@mkdir -p build/bench
	@for part in fake_unit client; do \
	    $(CXX) -O2 -std=c++17 -Wall -Wextra bench/router/$$part.cpp -o build/bench/router_$$part || exit 1; done
	$(PY) -m bench.router --rounds $(ROUNDS) $(if $(QUICK),--quick)
