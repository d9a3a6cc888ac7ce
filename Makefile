# make install | run | test | lint | bench      (each first makes .venv and installs what is missing)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Idle OpenMP threads spin only briefly: with shared cores endless spinning costs a factor of 10.
export GOMP_SPINCOUNT ?= 10000

.PHONY: install run slurm test lint bench

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

run: install
	$(BIN)/python -m iec.tables experiments/bundled.yaml --run $(ARGS)

# make table-1 .. table-5, figure-1 .. figure-5: SCALE=small (default without a GPU) or paper
table-%: install
	$(BIN)/python -m iec.tables experiments/table$*.yaml --run $(if $(SCALE),--scale $(SCALE)) $(ARGS)

figure-%: install
	$(BIN)/python -m iec.tables experiments/figure$*.yaml --run $(if $(SCALE),--scale $(SCALE)) $(ARGS)

figure-1: install
	$(BIN)/python scripts/analyse.py norms experiments/figure1.yaml $(if $(SCALE),--scale $(SCALE)) $(ARGS)

figure-2: install
	$(BIN)/python scripts/analyse.py errors experiments/figure2.yaml $(if $(SCALE),--scale $(SCALE)) $(ARGS)

slurm:
	scripts/local_slurm.sh up

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)
