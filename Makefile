# Scenemask: everything a newcomer or CI runs. `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
READY  := $(VENV)/.ready

.PHONY: help demo test test-all check fix bench bench-evaluate bench-gpu bench-kills bench-memory bench-peers bench-polygons bench-train bench-vectors check-deploy fuzz clean experiment-buildings experiment-skips test-encoders lock

help:
	@echo "make demo          install, then make and segment a synthetic scene (a minute after installation)"
	@echo "make test          install, then the tests that are not slow"
	@echo "make test-all      the slow ones too"
	@echo "make check         format, lint, types, import rules, fast tests"
	@echo "make fix           format and mend what can be mended"
	@echo "make bench         speed, as ratios, into docs/benchmarks/"
	@echo "make bench-evaluate  a large pair of rasters compared, into docs/benchmarks/"
	@echo "make bench-memory  peak memory at two sizes, into docs/benchmarks/"
	@echo "make bench-vectors polygons against other polygonizers, into docs/benchmarks/"
	@echo "make bench-kills   200 kills of runs, into docs/benchmarks/"
	@echo "make fuzz          29 000 damaged inputs, into docs/benchmarks/"
	@echo "make bench-gpu     a CUDA device against its floors, into docs/benchmarks/"
	@echo "make bench-polygons  large masks and noise, into docs/benchmarks/"
	@echo "make check-deploy  manifests, Dockerfiles and scripts (with kubectl, yamllint and shellcheck where they are)"
	@echo "make bench-train   training against bare forward and backward passes, into docs/benchmarks/"
	@echo "make experiment-buildings  a U-Net, one without skips and per-pixel classifiers on real buildings, into docs/"
	@echo "make experiment-skips  with and without skip connections, from few labels, into docs/"
	@echo "make test-encoders pretrained encoders, in an environment of their own"
	@echo "make lock          newest packages for the images, with hashes (asks the package index; minutes)"
	@echo "make bench-peers   other ways of doing it on the same weights (each where it is installed)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv is missing: apt install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/scenemask demo -o demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-encoders:
	$(PYTHON) -m venv build/encoders
	build/encoders/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[encoders]" hypothesis psutil pytest pytest-timeout
	build/encoders/bin/python -m pytest -q -o addopts= tests/encoders

experiment-skips: $(READY)
	$(BIN)/python -m tests.experiments.skips

experiment-buildings: $(READY)
	$(BIN)/python -m tests.experiments.buildings

bench-train: $(READY)
	$(BIN)/python -m tests.bench.train

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

bench-evaluate: $(READY)
	$(BIN)/python -m tests.bench.evaluate

bench-kills: $(READY)
	$(BIN)/python -m tests.bench.kills

bench-memory: $(READY)
	$(BIN)/python -m tests.bench.memory

bench-polygons: $(READY)
	$(BIN)/python -m tests.bench.polygons

bench-peers: $(READY)
	$(BIN)/python -m tests.bench.peers

fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run

bench-gpu: $(READY)
	$(BIN)/python -m tests.bench.gpu

bench-vectors: $(READY)
	$(BIN)/python -m tests.bench.vectors

check-deploy: $(READY)
	$(PIP) -e ".[dev,deploy-checks]"
	$(BIN)/python -m pytest tests/unit/deploy -rs -q

lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check -q "pip==26.3" "pip-tools==7.6.2"
	build/lock/bin/python docker/lock.py

clean:
	rm -rf $(VENV) demo bench-out
