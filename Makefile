# make demo        installs into .venv (once) and runs the main job
# make test        installs likewise, then every check and every test that is not slow
# make check       ruff, mypy, import-linter and the size ratchet
# make test-slow   the tests marked slow, as many as begin within 30 minutes
# make test-cuda   what needs an NVIDIA GPU (skipped without one)
# make test-nightly  the tests marked nightly: large files, servers that do not answer
# make mutants     plants known bugs in a copy of the tree and shows which test notices each (docs/mutants.md): minutes
# make bench       Luthier beside its peers (docs/performance.md): about an hour; the peers' environments are made below ~/.cache once
# make clean       removes .venv and every cache of the tools
#
# PYTHON=python3.12           which Python makes .venv (3.11 or newer)
# JOBS=2                      how many processes run the tests (default: the cores, up to 4)
# TORCH_INDEX=URL             where torch comes from, e.g. https://download.pytorch.org/whl/cpu for machines without a GPU

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(RUN) -m pip --disable-pip-version-check
# As many processes as there are cores, up to 4: each holds torch and a model.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); test $$n -lt 4 && echo $$n || echo 4)
# macOS has no timeout unless coreutils is there.
TIMEOUT := $(shell command -v timeout || command -v gtimeout)

.PHONY: demo install test check test-slow test-cuda test-nightly mutants bench clean

demo: $(STAMP)
	$(VENV)/bin/luthier demo

install: $(STAMP)

# The stamp spares the second call pip and the network. torch comes first and by itself, so that its index serves nothing else.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Luthier needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e ".[all,dev]"
	touch $@

test: check
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 -m "not slow and not nightly" --durations=10

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(RUN) -m pytest -q tests/house/test_sizes.py

# What would begin after 30 minutes is skipped and named, so that it ends within 40. pytest answers 5 when no test is marked slow.
test-slow: $(STAMP)
	$(if $(TIMEOUT),$(TIMEOUT) 2400) $(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m slow --timeout 900 --begin-within 30 --durations=10 || test $$? -eq 5

test-cuda: $(STAMP)
	$(RUN) -m pytest -m cuda

test-nightly: $(STAMP)
	$(RUN) -m pytest -m nightly --timeout 0 --durations=10

mutants: $(STAMP)
	$(RUN) mutants/run.py

bench: $(STAMP)
	$(RUN) benchmarks/engine.py
	$(RUN) benchmarks/engine.py --method full
	$(RUN) benchmarks/engine.py scaling
	$(RUN) benchmarks/serving.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
