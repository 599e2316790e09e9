# make demo    make .venv if it is not there, then watch the bundled match with the embedded model, live in the terminal
# make test    the same environment, then every test
# make test-slow  the tests that stream for minutes, left out above
# make lint    ruff, as pre-commit runs it
# make clean   remove .venv
#
# Settings, given as `make demo NAME=value`:
#   PYTHON       the interpreter that makes .venv: Python 3.11 or newer, with pip
#   TORCH        the torch to install. On Linux it is a CPU build by name, so that no gigabytes of CUDA ever come along;
#                with a GPU say TORCH='torch>=2.11,<2.14'
#   TORCH_INDEX  an index that serves torch's CPU builds, where pip's own settings name none
#   ARGS         more words for the command: make demo ARGS="cache=window"
#   WORKERS      processes that share the tests, each with one thread for torch; 0 runs them all in one
#   TESTS        what pytest runs: make test TESTS="tests/cache -x"

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

.PHONY: demo test test-slow lint clean

demo: $(READY)
	@$(BIN)/python scripts/stream.py $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV)

# The stamp is written last: an interrupted installation is taken up again, a finished one costs nothing.
# torch comes first and alone, so that nothing else can choose another build of it.
$(READY): pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)" || { \
	    echo "make: no $(TORCH) for this Python; name an index of torch's CPU builds: make $(MAKECMDGOALS) TORCH_INDEX=..." >&2; \
	    exit 1; }
	$(PIP) pip --editable ".[dev]"
	@touch $@
