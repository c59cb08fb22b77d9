# Every target sets up what it needs. Python 3.11 or newer and make are enough to start.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Other runtimes, whose versions do not go together with ours.
ECOSYSTEM := build/ecosystem
PINS      := tests/ecosystem/requirements
# In the order of the files, which starts the longest early; at most 4, as each holds PyTorch.
WORKERS   := --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-ecosystem lint format types contracts wheel lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create .venv with the versions in requirements.lock (once)

demo: $(STAMP) ## Take SmolLM2 from PyTorch to a verified bundle that generates text
	$(BIN)/python examples/demo.py

test: $(STAMP) ## Run all tests but those of test-ecosystem
	$(BIN)/python -m pytest -m 'not ecosystem' $(WORKERS)

test-ecosystem: $(STAMP) $(ECOSYSTEM)/.installed ## Run packages on optimum and onnxruntime-genai
	$(BIN)/python -m pytest tests/ecosystem tests/e2e/test_ecosystem.py

lint: $(STAMP) ## Check style and complexity
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Reformat, and repair what can be repaired automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check types, strictly
	$(BIN)/mypy

contracts: $(STAMP) ## Check which layer imports which
	$(BIN)/lint-imports

# setuptools would pack stale copies out of build/lib, so they go first and last.
wheel: $(STAMP) ## Build dist/optc-*.whl
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation
	rm -rf build/lib build/bdist.*

lock: ## Resolve all requirements anew and rewrite the lock files
	$(PYTHON) tools/check_python.py
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python tools/install_torch.py
	build/lock/bin/python -m pip install -qq '.[export,kernels,tensorrt-rtx,sign,dev]'
	build/lock/bin/python tools/lock.py requirements.lock pyproject.toml
	rm -rf build/lock build/lib build/bdist.*
	$(PYTHON) -m venv build/lock
	build/lock/bin/python tools/install_torch.py
	build/lock/bin/python -m pip install -qq --requirement $(PINS).txt
	build/lock/bin/python tools/lock.py $(PINS).lock $(PINS).txt
	rm -rf build/lock

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist optc.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(ECOSYSTEM)/.installed: $(PINS).lock tools/install_torch.py
	$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python tools/install_torch.py --constraint $(PINS).lock
	@echo "installing the versions in $(PINS).lock"
	$(ECOSYSTEM)/bin/python -m pip install -qq --requirement $(PINS).lock
	touch $@

# The stamp is written last: an interrupted set-up is taken up again.
$(STAMP): requirements.lock pyproject.toml tools/install_torch.py
	$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install_torch.py --constraint requirements.lock
	@echo "installing the versions in requirements.lock"
	$(BIN)/python -m pip install -qq --requirement requirements.lock
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	touch $@
