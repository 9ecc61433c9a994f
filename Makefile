# `make demo` and `make test` do all the set-up: everything goes into .venv, pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# One test process per core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile
PACKAGES := backends compiler frontends ir passes tools

.PHONY: demo test test-all lint bench clean

demo: $(READY)
	$(BIN)/python -m burnish.tools.demo

test: $(READY)
	$(PYTEST) -q

test-all: $(READY)
	$(PYTEST) -q -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/burnish
	MYPYPATH=$(VENV)/typing $(BIN)/mypy --config-file pyproject.toml $(addprefix -p burnish.,$(PACKAGES))

# Every figure of docs/benchmarks.md and the README's table, measured here and written into both.
# `make bench BENCH=--large` also compiles the shape of Llama-2-7B (20 GB of disk).
bench: $(READY)
	$(BIN)/python -m burnish.tools.bench $(BENCH)

clean:
	rm -rf $(VENV)

# torch is named so that its pin is resolved first: a looser request takes a build with gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[dev,transformers]"
	touch $@
