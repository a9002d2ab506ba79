# Two commands are enough: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults bench-health bench-run-cost bench-check-truth bench-check-scale bench-train bench-loss-curve bench-padding bench-engine lint format data clean

# In a folder of its own, from scratch each time: runs of yours, such as runs/demo, are never touched.
demo: $(VENV)/.installed
	rm -rf runs/make-demo
	$(BIN)/tunesmith run recipes/demo.yaml --run runs/make-demo

# Two processes of one thread each: tiny models gain nothing from a second thread. WORKERS=0 runs all tests in one process.
WORKERS ?= 2
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Hundreds of runs, each with a fault injected by real means; prints what was lost.
test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.faults

# False alarms of the health rules on healthy runs, and what they cost.
bench-health: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.health_runs

# What checkpoints and health cost of a demo run.
bench-run-cost: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.run_cost

# Faults planted in made-up data, and how many of each the check finds.
bench-check-truth: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.check_truth

# Time, memory and disk of the check on 10,000 to 1,000,000 rows.
bench-check-scale: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.check_scale

# Speed and memory of training beside TRL, PEFT and the article's recipe. QUICK=1 for a smoke run of some minutes.
bench-train: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.train_speed $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# Whether the fast path's losses are those of plain PEFT over 200 steps. Three runs of some minutes.
bench-loss-curve: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.loss_curve

# How much of a run's batches is padding.
bench-padding: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.padding

# Exactness and speed of the serving engine beside PEFT and transformers' generate.
bench-engine: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.serve_engine --exact large
	$(BIN)/python -m benchmarks.serve_engine --exact small
	$(BIN)/python -m benchmarks.serve_engine

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_file_size.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The demo data are committed; this makes them again, to the byte.
data:
	$(PYTHON) scripts/make_demo_data.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@ $(VENV)/.installed
