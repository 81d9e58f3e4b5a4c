# make quickstart   run the main job: bundled model, bundled real data, a table and a report
# make test         run the tests, in two processes (or in four: make test JOBS=4)
# make test-slow    run the tests that take long: every pair of a family, an algorithm or a fault with every law
# make check        lint, types, layers
# make docs         build the docs site, build/site/index.html
# make bench [ONLY="P4 P6"]  compare with plain loops and other frameworks; see benchmarks/README.md
# make clean        remove the environment and run folders
PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
JOBS := 2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-slow check docs bench clean

quickstart: $(VENV)/run
	$(BIN)/fedloom run quickstart

# Commands that tests start use one thread each, as the tests themselves do.
test test-slow: export OMP_NUM_THREADS := 1

test: $(VENV)/dev
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m "slow or hypothesis" --hypothesis-profile many -n $(JOBS) --dist loadfile

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest tests/test_layers.py

docs: $(VENV)/dev
	$(BIN)/python scripts/make_config_reference.py
	$(BIN)/python scripts/stage_docs.py
	$(BIN)/zensical build --strict
	@echo "Open build/site/index.html."

# torch comes first and by itself: what is installed after it finds it there and asks for no other build.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and what fedloom needs; this takes a minute or two."
	$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/run: $(VENV)/torch pyproject.toml
	$(PIP) install -c constraints.txt -e ".[eval]"
	@touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) install -c constraints.txt -e ".[eval,dev]"
	@touch $@ $(VENV)/run

bench: $(BENCH)/ready
	$(BENCH)/bin/python -m benchmarks $(ONLY)

# What benchmarks compare with lives apart.
$(BENCH)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	@echo "Installing what benchmarks compare with; this takes a few minutes."
	grep -v '^ray==' constraints.txt > $(BENCH)/constraints.txt
	$(BENCH)/bin/python -m pip --disable-pip-version-check --quiet install -c $(BENCH)/constraints.txt torch
	$(BENCH)/bin/python -m pip --disable-pip-version-check --quiet install -c $(BENCH)/constraints.txt -e ".[eval,bench]"
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH) runs
