# Scenemask: everything a newcomer or CI runs. `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
READY  := $(VENV)/.ready

.PHONY: help demo test test-all check fix bench bench-gpu bench-kills bench-memory bench-peers bench-polygons bench-vectors clean

help:
	@echo "make demo          install, then make, train and segment a synthetic scene (about 2 minutes after installation)"
	@echo "make test          install, then the tests that are not slow"
	@echo "make test-all      the slow ones too"
	@echo "make check         format, lint, types, import rules, fast tests"
	@echo "make fix           format and mend what can be mended"
	@echo "make bench         speed, as ratios, into docs/benchmarks/"
	@echo "make bench-memory  peak memory at two sizes, into docs/benchmarks/"
	@echo "make bench-vectors polygons against other polygonizers, into docs/benchmarks/"
	@echo "make bench-kills   200 kills of runs, into docs/benchmarks/"
	@echo "make bench-gpu     a CUDA device against its floors, into docs/benchmarks/"
	@echo "make bench-polygons  large masks and noise, into docs/benchmarks/"
	@echo "make bench-peers   other ways of doing it on the same weights (with MONAI where it is installed)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv is missing: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/scenemask demo -o demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-all: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --run-slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 tests/unit -q

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m tests.bench.speed

bench-kills: $(READY)
	$(BIN)/python -m tests.bench.kills

bench-memory: $(READY)
	$(BIN)/python -m tests.bench.memory

bench-polygons: $(READY)
	$(BIN)/python -m tests.bench.polygons

bench-peers: $(READY)
	$(BIN)/python -m tests.bench.peers

bench-gpu: $(READY)
	$(BIN)/python -m tests.bench.gpu

bench-vectors: $(READY)
	$(BIN)/python -m tests.bench.vectors

clean:
	rm -rf $(VENV) demo bench-out
