# demo, test, budget and check set up .venv themselves; gpu uses the Python it is given and installs nothing

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALLED := $(VENV)/.installed
CSRC := $(wildcard csrc/*.* csrc/*/*)

.PHONY: demo test test-compiled test-interpreted test-fast test-budget coverage wheels sdist budget matrix
.PHONY: check bench bench-large docs sanitize mutants gpu format clean

demo: $(INSTALLED)
	$(VENV)/bin/rvi-fast demo

# one part after the other, each in PROCESSES processes, so that both end with all at work; Triton's interpreter
# needs processes of its own
PROCESSES ?= 2
test: $(INSTALLED)
	$(MAKE) --keep-going test-compiled test-interpreted

test-compiled: $(INSTALLED)
	$(RUN) pytest --numprocesses $(PROCESSES) --dist loadfile

test-interpreted: $(INSTALLED)
	TRITON_INTERPRET=1 $(RUN) pytest -p no:cacheprovider --numprocesses $(PROCESSES) tests/interpreted

# under two minutes: ops, laws, posteriors, a fit and the rules of the tree, without what starts processes or
# compiles
FAST := house layout settings noise adam_step row_adam relay_sample log_likelihood linear_log_likelihood cpp \
	posterior latents inputs fingerprint step transforms scaling missingness metrics
test-fast: $(INSTALLED)
	$(RUN) pytest --numprocesses $(PROCESSES) --dist loadfile $(FAST:%=tests/test_%.py) \
	    -k "not examples and not compiled and not fork and not importing and not threads"

# what of rvi_fast the compiled suite runs, line by line
coverage: $(INSTALLED)
	$(RUN) pytest --numprocesses $(PROCESSES) --dist loadfile --cov --cov-report=term:skip-covered

# the kernels compiled for every target: what tests/test_kernel_budget.py holds them to; with TRITON=3.8.0 that
# test under another Triton, which takes the place of the installed one for it alone
budget: $(INSTALLED)
ifdef TRITON
	$(RUN) pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	RVI_FAST_TARGETS=all PYTHONPATH=build/triton-$(TRITON) $(RUN) pytest tests/test_kernel_budget.py
else
	$(VENV)/bin/python tests/kernel_budget.py
endif

# every launch for every target, of which make test has half
test-budget: $(INSTALLED)
	RVI_FAST_TARGETS=all $(RUN) pytest tests/test_kernel_budget.py

# the compiled suite under another torch, with the Triton that it asks for, in a virtual environment of its own
# (6 GB with CUDA): make matrix PYTHON=python3.12 TORCH=2.11.0 TESTS="tests/test_fit.py tests/test_export.py"
TORCH ?= 2.14.1
TESTS ?= tests
matrix:
	$(PYTHON) -m venv build/torch-$(TORCH)
	build/torch-$(TORCH)/bin/python -m pip install --quiet torch==$(TORCH) --editable ".[dev]"
	build/torch-$(TORCH)/bin/python -m pytest $(TESTS)

check: $(INSTALLED)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC)

bench: $(INSTALLED)
	$(RUN) pytest bench/ --ignore bench/bench_large_n.py --write-results

# the site, in build/docs/index.html; a warning is an error. RVI_FAST_INTERSPHINX=1 links to other projects, by the network
docs: $(INSTALLED)
	$(RUN) pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(RUN) sphinx -W --keep-going -q docs build/docs

# up to five million rows, which take 22 GB of disk while it runs
bench-large: $(INSTALLED)
	$(RUN) pytest bench/bench_large_n.py --write-results

# the C++ part built with AddressSanitizer and UBSan, in a copy of its own, and its tests run on it;
# left out are those that start processes or need the ordinary build
SANITIZED := build/sanitized
sanitize: $(INSTALLED)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -rL rvi_fast $(SANITIZED)/rvi_fast && rm -f $(SANITIZED)/rvi_fast/_C*.so
	RVI_FAST_CPP=require RVI_FAST_CXXFLAGS="-O1 -g -fno-omit-frame-pointer \
	    -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
	    $(VENV)/bin/python setup.py -q build_ext -b $(SANITIZED) -t $(SANITIZED)/objects
	PYTHONSAFEPATH=1 PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) \
	    $$(gcc -print-file-name=libstdc++.so)" \
	    $(RUN) pytest -q -p no:cacheprovider -c /dev/null --rootdir=tests tests/test_cpp.py \
	    tests/test_linear_log_likelihood.py tests/test_adam_step.py \
	    tests/test_op_checks.py \
	    -k "not fork and not environment and not stale and not missing and not gradcheck and not compile \
	    and not accurate_as_torch"

# seeds faults, one at a time, in a copy of the checkout, and expects a test to fail at each; takes an hour
mutants: $(INSTALLED)
	$(VENV)/bin/python tests/mutants.py

DIST ?= dist

# for people who have no compiler: a wheel for each Python that pyproject.toml names, in containers on Linux
wheels:
	$(PYTHON) -m pip install --quiet "cibuildwheel>=3.2"
	$(PYTHON) -m cibuildwheel --output-dir $(DIST)

# the source with its tests, and a wheel without kernels, which installs where no other does
sdist:
	$(PYTHON) -m pip install --quiet build twine
	$(PYTHON) -m build --sdist --outdir $(DIST)
	RVI_FAST_CPP=off $(PYTHON) -m build --wheel --outdir $(DIST)
	$(PYTHON) -m twine check --strict $(DIST)/*

# everything a GPU is needed for, in parts of under eight minutes; from a checkout, without a virtual environment
# or a network: make gpu PYTHON=python3 OUT=build/gpu PART=tests|ops|step|large
OUT ?= build/gpu
gpu:
	set -e; for part in $(or $(PART),tests ops step large); do $(PYTHON) bench/gpu.py $$part --out $(OUT); done

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
