# make demo    create .venv if needed, then stream the embedded match with the embedded model to the terminal
# make test    create .venv if needed, then run the tests, except the slow ones
# make test-slow  run the slow tests, which stream for minutes
# make lint    run ruff, as pre-commit does, and mypy on the public modules
# make types   run mypy on the public modules
# make clean   remove .venv
#
# Settings, given as `make demo NAME=value`:
#   PYTHON       the interpreter for .venv: Python 3.11 or newer, with pip
#   TORCH        the torch to install; on Linux the CPU build by default, without gigabytes of CUDA libraries.
#                With a GPU: TORCH='torch>=2.11,<2.14'
#   TORCH_INDEX  an index with torch's CPU builds, if pip is not configured with one
#   ARGS         options of the demo: make demo ARGS="cache=window"
#   WORKERS      processes for the tests, with one torch thread each; 0 runs all tests in this process
#   TESTS        arguments of pytest: make test TESTS="tests/cache -x"

PYTHON ?= python3
TORCH_VERSION := 2.13.0
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==$(TORCH_VERSION)+cpu
else
TORCH ?= torch==$(TORCH_VERSION)
endif
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= 2
TESTS ?=

VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
PIP = $(PYTHON) -m pip --python $(VENV) --disable-pip-version-check install

.PHONY: demo test test-slow lint types clean

demo: $(READY)
	@$(BIN)/python scripts/stream.py $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

clean:
	rm -rf $(VENV)

# The stamp file is written last, so that an interrupted installation runs again.
# torch is installed first, so that no other package can choose another build.
$(READY): pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" || { \
	    echo "make: no $(TORCH) for this Python; name an index of torch's CPU builds: make $(MAKECMDGOALS) TORCH_INDEX=..." >&2; \
	    exit 1; }
	$(PIP) pip --editable ".[dev]"
	@touch $@
