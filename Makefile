# Everything a fresh machine needs: `make demo`, `make check`, `make test`. Each builds .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
TOOLS := $(VENV)/.tools
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo check format test bench fuzz clean

help:
	@echo "make demo                the demo: eight institutions, real purchases, results in demo-results/"
	@echo "make check               ruff, mypy --strict, import-linter"
	@echo "make test                the whole test suite"
	@echo "make bench TARGET=...    audit, clustering, consent, deployment, encoder, fairness, faults, grid, log, lookalike, mitigation, noise, onboarding,"
	@echo "                         prototypes, reach, rfm_edges, rules, scoring, secure_sum, seeds or stores; ARGS=... are passed on"
	@echo "make fuzz                every parser of foreign bytes, by mutations; by coverage too where atheris is installed"
	@echo "make clean               remove what was built"

install: $(TOOLS)

$(PACKAGE): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(TOOLS): $(PACKAGE)
	$(PIP) torch # its CPU build
	$(PIP) --editable '.[dev]'
	@touch $@

demo: $(PACKAGE)
	$(BIN)/cohortium demo --out demo-results $(ARGS)

check: $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# one thread for every worker: as many as there are processors would wait for each other
test: export OMP_NUM_THREADS := 1
# files of tests lie in memory where there is room: ledgers and logs wait for the disk at every commit
test: export TMPDIR := $(or $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 6000000 {print "/dev/shm"}'),$(TMPDIR),/tmp)
# an environment may forbid it: every process that a test starts would compile everything anew
test: export PYTHONDONTWRITEBYTECODE :=
test: $(TOOLS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: $(TOOLS)
	@test -n "$(TARGET)" || (echo "say which: make bench TARGET=audit|clustering|consent|deployment|encoder|fairness|faults|grid|log|lookalike|mitigation|noise|onboarding|prototypes|reach|rfm_edges|rules|scoring|secure_sum|seeds|stores" && exit 2)
	$(BIN)/python benchmarks/$(subst -,_,$(TARGET)).py $(ARGS)

fuzz: $(TOOLS)
	$(BIN)/python fuzz/run.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-results
