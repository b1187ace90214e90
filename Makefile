# Two commands do all the set-up on a bare clone with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUT := .vitrify/demo

.PHONY: help demo test torture check schema golden bench bench-engine bench-search clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.compile: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[compile]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.compile
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(VENV)/.compile ## install, compile the helpdesk example on the embedded model, run the result
	@mkdir -p $(OUT)
	$(BIN)/vitrify compile examples/helpdesk/program.py:Helpdesk --data examples/helpdesk/tickets.jsonl \
	  --metric examples/helpdesk/program.py:routed --lm embedded --seed 0 -o $(OUT)/helpdesk.json
	$(BIN)/vitrify run $(OUT)/helpdesk.json -i message="I want to send the shoes back, where do I print the return label?"

test: $(VENV)/.dev ## run every test (no network beyond the package index, no key)
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

torture: $(VENV)/.dev ## the long versions of the fault tests: 200 SIGKILLs, storms, every budget, a million hostile files
	$(BIN)/python -m pytest -n 2 -q tests/torture.py -k "not hostile"
	$(BIN)/python -m pytest -n 2 -q -rP tests/torture.py -k hostile

check: $(VENV)/.dev ## ruff, mypy, pyright and the layout test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p vitrify
	$(BIN)/mypy tests
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layout.py

schema: $(VENV)/.dev ## write docs/artifact.schema.json from the records
	$(BIN)/python -c "from vitrify.programs.schema import write_schema; write_schema('docs/artifact.schema.json')"

golden: $(VENV)/.dev ## make the golden files of a format version that isn't released yet
	$(BIN)/python -m tests.golden.make

bench: $(VENV)/.dev ## the road beside MIPROv2, on the embedded model
	$(BIN)/python benchmarks/road.py

bench-engine: $(VENV)/.dev ## the engine's figures as ratios against stock DSPy
	$(BIN)/python benchmarks/engine.py

bench-search: $(VENV)/.dev ## the search beside MIPROv2 and others: a few minutes (FULL=1: hours)
	$(BIN)/python benchmarks/search.py $(if $(FULL),--full)

clean: ## remove what the other targets made
	rm -rf $(VENV) .vitrify build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
