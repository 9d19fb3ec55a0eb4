# Speed of the native core against what the machine can do, and against llama.cpp where LLAMA_VENV has llama-cpp-python
# and gguf, and vLLM where VLLM_VENV has it. Written after every process: RESUME=1 goes on from an interrupted one.
ROUNDS ?= 7
BENCH_CPUS ?= 0,1
BENCH_MODELS ?=
LLAMA_VENV ?=
VLLM_VENV ?=
RESUME ?=
bench-kernels: $(TEST_STAMP) native  ## kernels: share of bandwidth, batch, context; LLAMA_VENV=..., VLLM_VENV=... add peers
	@mkdir -p build/bench
	$(CXX) -O3 -std=c++17 -march=native -Wno-uninitialized -pthread kernels/bench/roofline.cpp -o build/bench/roofline
	$(PY) kernels/bench/run.py --rounds $(ROUNDS) --cpus $(BENCH_CPUS) $(if $(LLAMA_VENV),--llama $(LLAMA_VENV)/bin/python) \
	    $(if $(VLLM_VENV),--vllm $(VLLM_VENV)/bin/python) $(if $(BENCH_MODELS),--models $(BENCH_MODELS)) $(if $(RESUME),--resume) \
	    --output bench/results/kernels.json
.PHONY: bench-kernels
