# Speed of the native core against what the machine can do, and against llama.cpp where LLAMA_VENV has llama-cpp-python.
ROUNDS ?= 7
BENCH_CPUS ?= 0,1
LLAMA_VENV ?=
bench-kernels: $(TEST_STAMP) native  ## kernels: share of bandwidth, batch, context; LLAMA_VENV=... adds llama.cpp
	@mkdir -p build/bench
	$(CXX) -O3 -std=c++17 -march=native -pthread kernels/bench/roofline.cpp -o build/bench/roofline
	$(PY) kernels/bench/run.py --rounds $(ROUNDS) --cpus $(BENCH_CPUS) $(if $(LLAMA_VENV),--llama $(LLAMA_VENV)/bin/python) \
	    --output bench/results/kernels.json
.PHONY: bench-kernels
