# make demo    see a photo go through a full-size model
# make test    the quick test suite
# make check   formatting, lint, types, imports between rooms
# make help    the rest

PYTHON ?= python3
VENV ?= .venv
# One known pair. For another build of torch: make setup TORCH="torch torchvision --index-url URL"
TORCH ?= torch==2.14.1 torchvision==0.29.1
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
QUICK := not slow and not gpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format schema clean

help:
	@echo "make demo      set up, export a full-size EBSeg-B, segment a photo: demo-output/"
	@echo "make test      set up, run the quick test suite"
	@echo "make test-all  the slow tests too: minutes and gigabytes"
	@echo "make check     ruff, mypy and import-linter"
	@echo "make setup     a virtual environment in $(VENV) with all that development needs"
	@echo "make format    let ruff format and fix what it can"
	@echo "make schema    write docs/schema/bundle-1.json anew from contract.py"
	@echo "make clean     remove what tools and builds left behind; $(VENV) stays"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) -V), wanted 3.10 or newer; make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The demo needs less than development, and development all that the demo needs.
$(VENV)/.ready-demo: pyproject.toml | $(BIN)/python
	@echo "installing PyTorch and the toolkit into $(VENV)"
	$(PIP) $(TORCH)
	$(PIP) --editable ".[export,cpu]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-demo
	$(PIP) --editable ".[dev]"
	@touch $@

setup: $(VENV)/.ready-dev

demo: $(VENV)/.ready-demo
	$(BIN)/ebseg demo -o demo-output

# Tests of one file share their bundles and models, so a file stays with one worker; in order, because sorted by the
# number of tests the longest file would come last.
test: setup
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "$(QUICK)"

# One process: some of these tests take 6 GB.
test-all: setup
	$(BIN)/pytest

# mypy takes a package's name from its folder; the link gives it the right one, whatever the clone is called.
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .mypy_cache/root && ln -sfn ../.. .mypy_cache/root/ebseg_deploy
	MYPYPATH=.mypy_cache/root $(BIN)/mypy -p ebseg_deploy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: setup
	$(BIN)/python -c "import json; from ebseg_deploy.contract import bundle_json_schema as schema; \
		print(json.dumps(schema(), indent=2, ensure_ascii=False))" > docs/schema/bundle-1.json

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
