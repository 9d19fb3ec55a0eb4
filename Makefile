# sysHAX from source. `make run` and `make test` need Python >= 3.9, a C++17 compiler and make.
PYTHON ?= python3
VENV ?= .venv
ORACLE ?= .venv-oracle
PY := $(VENV)/bin/python
TIER = $(PY) tests/tier.py
PYTEST = $(PY) -m pytest
DEV := packaging/dev
export PYTHONDONTWRITEBYTECODE := $(if $(CI),1,)

.DEFAULT_GOAL := help
.PHONY: help run native check format test test-unit test-process test-39 test-kernels test-sysinfer test-vllm \
        test-vllm-breadth test-vllm-version test-system test-deployed \
        summary manuals plugin vllm-env rpm repo clean $(VENV) $(ORACLE)

help:  ## this list
	@sed -n 's/^\([a-z0-9$$(){}A-Z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sed 's/^[$$](VENV)/$(VENV)/;s/^[$$](ORACLE)/$(ORACLE)/' \
	    | awk -F '\t' '{ printf "  make %-15s %s\n", $$1, $$2 }'

# ---- environments -------------------------------------------------------------------------------------------------
# One stamp a purpose: `make run` must not wait for what only tests need.
RUN_STAMP := $(VENV)/.run-stamp
TEST_STAMP := $(VENV)/.test-stamp
ORACLE_STAMP := $(ORACLE)/.stamp
define make_venv
@$(PYTHON) $(DEV)/preflight.py python venv pip
@test -x $(1)/bin/python || { echo "making $(1) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(1); }
@echo "installing into $(1): $(2)"
@$(1)/bin/python $(DEV)/requirements.py $(2) | $(1)/bin/python -m pip install -qq --disable-pip-version-check -r /dev/stdin
@$(1)/bin/python -c "import os, sysconfig; open(os.path.join(sysconfig.get_path('purelib'), 'syshax-source.pth'), 'w').write(\
'%s\n%s/kernels/python\n' % (os.getcwd(), os.getcwd()))"
@touch $@
endef

$(RUN_STAMP): setup.cfg
	$(call make_venv,$(VENV),sysinfer)
$(TEST_STAMP): $(RUN_STAMP)
	$(call make_venv,$(VENV),sysinfer test)
$(ORACLE_STAMP): setup.cfg
	$(call make_venv,$(ORACLE),sysinfer test oracle)

$(VENV): $(TEST_STAMP)  ## Python environment for work on the project
$(ORACLE): $(ORACLE_STAMP)  ## the same with torch and transformers, sysinfer's oracles

native:  ## the native core (kernels/)
	@$(PYTHON) $(DEV)/preflight.py g++ libstdc++.a make
	@$(MAKE) --no-print-directory -C kernels

# ---- run ----------------------------------------------------------------------------------------------------------
run: $(RUN_STAMP) native  ## the daemon in the foreground with the demo model, port 8010; Ctrl-C stops everything
	@exec $(PY) -m syshaxd

# ---- tests: each tier prints its time and fails over its budget (tests/tier.py) ------------------------------------
# The type stubs of numpy know no Python before 3.10.
SOURCES := syshaxd kernels/python testbed tests bench packaging
PYTHON_FILES = $(shell git ls-files '*.py')
NATIVE = $(shell git ls-files '*.cpp' '*.h' '*.c')
check: $(TEST_STAMP)  ## layers, types, lint, layout, style (3 min)
	@$(TIER) check -- $(VENV)/bin/lint-imports --no-cache \
	    -- $(PY) -m mypy syshaxd packaging \
	    -- $(PY) -m mypy --python-version 3.10 kernels/python testbed tests bench \
	    -- $(PY) -m mypy --python-version 3.12 kernels/python \
	    -- $(PY) -m flake8 $(SOURCES) \
	    -- $(VENV)/bin/ruff check -q $(PYTHON_FILES) -- $(VENV)/bin/ruff format --check -q $(PYTHON_FILES) \
	    -- $(VENV)/bin/clang-format --dry-run --Werror $(NATIVE) \
	    -- $(PYTEST) -q tests/style

format: $(TEST_STAMP)  ## Python and C++ as `make check` wants them
	@$(VENV)/bin/ruff check -q --fix --unsafe-fixes $(PYTHON_FILES)
	@$(VENV)/bin/ruff format -q $(PYTHON_FILES)
	@$(VENV)/bin/clang-format -i $(NATIVE)

test-unit: $(TEST_STAMP)  ## pure logic (2 min)
	@$(TIER) unit -- $(PYTEST) -q -n 2 --dist loadfile tests/unit

test-process: $(TEST_STAMP) native  ## real processes and sockets (8 min)
	@$(TIER) process -- $(PYTEST) -q -n 2 --dist loadfile tests/process

test-39: native  ## unit and process tiers on Python 3.9 with aiohttp 3.8.4
	@tests/on39.sh

test-kernels: $(TEST_STAMP) native  ## the native core (8 min)
	@$(PYTHON) $(DEV)/preflight.py g++ gcc make
	@$(TIER) kernels -- $(PYTEST) -q tests/kernels

test-sysinfer: $(ORACLE_STAMP) native  ## the embedded engine against its oracles (10 min)
	@$(ORACLE)/bin/python tests/tier.py sysinfer -- $(ORACLE)/bin/python -m pytest -q tests/sysinfer

test:  ## check, unit, process, kernels, sysinfer; no root, 31 minutes at most
	@rm -rf build/tiers
	@for tier in check test-unit test-process test-kernels test-sysinfer; do $(MAKE) --no-print-directory $$tier || failed="$$failed $$tier"; done; \
	    $(MAKE) --no-print-directory summary; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

summary:
	@$(PYTHON) tests/tier.py --summary

VLLM_VENV ?= .venv-vllm
VLLM_VERSION ?= 0.32.0
VLLM_OLD_VENV ?= .venv-vllm-old
VLLM_OLD_VERSION ?= 0.27.1
vllm-env:  ## stock vLLM for CPUs, newest and older, in environments of their own, for test-vllm
	@tests/vllm/environment.sh $(VLLM_VERSION) $(VLLM_VENV)
	@tests/vllm/environment.sh $(VLLM_OLD_VERSION) $(VLLM_OLD_VENV)

test-vllm: $(TEST_STAMP) native $(if $(CI),vllm-env)  ## the plugin in real vLLM units under the daemon (18 min)
	@VLLM_VENV=$(VLLM_VENV) VLLM_OLD_VENV=$(VLLM_OLD_VENV) $(TIER) vllm -- $(PYTEST) -q tests/vllm \
	    --ignore tests/vllm/breadth -m "not breadth"

test-vllm-breadth: $(TEST_STAMP) native  ## killed processes, degrees, precisions, damage: VLLM_VENV=...; not in CI
	@VLLM_VENV=$(VLLM_VENV) VLLM_OLD_VENV=$(VLLM_OLD_VENV) $(PY) -m tests.vllm.record breadth

test-vllm-version: $(TEST_STAMP) native  ## the plugin's core on another vLLM: VLLM_OLD_VENV=...; bench/results/vllm-*.json
	@VLLM_OLD_VENV=$(VLLM_OLD_VENV) $(PY) -m tests.vllm.record version

PLUGIN ?= build/plugin
plugin: native  ## the folder that a vLLM elsewhere is started with (PYTHONPATH, mounted read-only): PLUGIN=FOLDER
	rm -rf $(PLUGIN)
	mkdir -p $(PLUGIN)
	cd kernels/python && tar -c --exclude=__pycache__ syshax_contract syshax_kernels syshax_handoff syshax_vllm *.dist-info | tar -x -C $(abspath $(PLUGIN))

test-system: $(TEST_STAMP) native  ## install, start, reload, upgrade under a real systemd; needs root (16 min)
	@$(TIER) system -- $(PYTEST) -q tests/system

# NIXL comes into a folder of its own: the environment of the other vLLM tests stays stock.
NIXL ?= build/nixl
RECORD ?=
test-deployed: $(TEST_STAMP) native  ## vLLM in containers, and over NIXL; needs root and vllm-env, not part of CI (20 min)
	@test -d $(NIXL) || test ! -x $(VLLM_VENV)/bin/python || $(VLLM_VENV)/bin/python -m pip -q install --no-deps \
	    --disable-pip-version-check --target $(NIXL) nixl==1.5.1 nixl-cu12==1.5.1
	@VLLM_VENV=$(VLLM_VENV) NIXL=$(abspath $(NIXL)) $(TIER) deployed -- $(PYTEST) -q tests/deployed \
	    --junitxml=build/deployed.xml; status=$$?; \
	    $(if $(RECORD),$(PY) -m bench.deployed $(VLLM_VENV)/bin/python $(NIXL) build/deployed.xml;) exit $$status

manuals: $(RUN_STAMP)  ## manual pages and shell completions, from the schema and the command's parsers
	@$(PY) $(DEV)/manuals.py

# ---- packages -----------------------------------------------------------------------------------------------------
rpm: $(RUN_STAMP)  ## source and binary RPM into dist/
	@$(PYTHON) $(DEV)/preflight.py rpmbuild g++
	@packaging/rpm/build dist

repo: rpm  ## dist/ as a dnf repository
	@$(PYTHON) $(DEV)/preflight.py createrepo_c
	createrepo_c -q dist

include bench/bench.mk

clean:  ## everything built, but not the environments
	rm -rf build dist .run
	@test ! -f kernels/Makefile || $(MAKE) --no-print-directory -C kernels clean
