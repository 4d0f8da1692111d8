# demo, test and check set up .venv themselves; gpu uses the Python it is given and installs nothing

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALLED := $(VENV)/.installed
CSRC := $(wildcard csrc/*)

.PHONY: demo test check bench gpu format clean

demo: $(INSTALLED)
	$(VENV)/bin/rvi-fast demo

test: $(INSTALLED)
	$(RUN) pytest

check: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC)

bench: $(INSTALLED)
	$(RUN) pytest bench/ --write-results

# everything a GPU is needed for; from a checkout, without a virtual environment or a network
gpu:
	@$(PYTHON) -c "import torch; assert torch.cuda.is_available(), 'torch sees no CUDA device'"
	PYTHONPATH=. $(PYTHON) -m rvi_fast.info
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu
	PYTHONPATH=. $(PYTHON) -m pytest bench/

format: $(INSTALLED)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(VENV)/bin/clang-format -i $(CSRC)

$(INSTALLED): pyproject.toml setup.py constraints.txt $(CSRC)
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed'"
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
