# `make demo` and `make test` do all the set-up: everything goes into .venv, pinned by constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# One test process per core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile
PACKAGES := backends compiler frontends ir passes tools

.PHONY: demo test test-all lint bench rivals clean

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

# Other tools on the same model, in an environment of their own; llama.cpp is built for this processor (minutes).
# Without AMX: llama.cpp 0.3.36 ends with a segmentation fault in its AMX product.
rivals:
	test -x $(VENV)-rivals/bin/python || $(PYTHON) -m venv $(VENV)-rivals
	CMAKE_ARGS="-DCMAKE_C_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16' -DCMAKE_CXX_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'" \
	$(VENV)-rivals/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[transformers,rivals]"
	$(VENV)-rivals/bin/python -m burnish.tools.rivals.bench $(BENCH)

clean:
	rm -rf $(VENV) $(VENV)-rivals

# torch is named so that its pin is resolved first: a looser request takes a build with gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e ".[dev,transformers]"
	touch $@
