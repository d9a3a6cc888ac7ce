# make install | run | report | test | lint | wheel | docs | bench | gpu      (each first makes .venv and installs what is missing)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# Idle OpenMP threads spin only briefly: with shared cores endless spinning costs a factor of 10.
export GOMP_SPINCOUNT ?= 10000
# So do threads of numpy's linear algebra, which scores need for a second or two: with one busy neighbour a score took minutes.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: install run report controls tables figure-1 figure-2 slurm test lint wheel docs bench gpu

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

run: install
	$(BIN)/python -m iec.tables experiments/bundled.yaml --run $(ARGS)

# make tables (all of these), table-1 .. table-5, figure-1 .. figure-5, ablation-lambda, -iterations, -steps, -cache_from, controls:
# SCALE=small (default without a GPU) or paper; MODEL=NAME[,NAME] at the small scale (default: both bundled models)
SCALED = $(if $(SCALE),--scale $(SCALE)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

table-%: install
	$(BIN)/python -m iec.tables experiments/table$*.yaml --run $(SCALED)

figure-%: install
	$(BIN)/python -m iec.tables experiments/figure$*.yaml --run $(SCALED)

ablation-%: install
	$(BIN)/python -m iec.tables experiments/ablation_$*.yaml --run $(SCALED)

controls: install
	$(BIN)/python -m iec.tables experiments/controls.yaml --run $(SCALED)

tables: figure-1 figure-2 install
	$(BIN)/python -m iec.tables experiments/table?.yaml experiments/figure[345].yaml experiments/ablation_*.yaml experiments/controls.yaml --run $(SCALED)

figure-1: install
	$(BIN)/python scripts/analyse.py norms experiments/figure1.yaml $(SCALED)

figure-2: install
	$(BIN)/python scripts/analyse.py errors experiments/figure2.yaml $(SCALED)

# make report: one HTML page of all that is finished, OUTPUT/report.html
report: install
	$(BIN)/python -m iec.report $(SCALED)

slurm:
	scripts/local_slurm.sh up

# One process a core with one thread each, a file of tests at a time. In one process: python -m pytest.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make wheel: build it, and use it in a fresh environment from an empty folder
wheel: install
	scripts/check_wheel.sh $(BIN)/python

bench: install
	$(BIN)/python -m tests.benchmarks $(ARGS)

# make gpu: check this machine's GPU, at most 9 minutes, see docs/gpu.md. DEVICE=cpu rehearses it in a minute.
DEVICE ?= cuda
gpu: install
	$(BIN)/python -m iec.gpucheck --device $(DEVICE) $(ARGS)

# site/: dead links, orphan pages and missing headings fail; nothing is fetched
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
