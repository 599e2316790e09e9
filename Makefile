# make demo    create .venv if needed, then stream the embedded match with the embedded model to the terminal
# make test    create .venv if needed, then run the tests, except the slow ones
# make test-attacks  run the attacks on the server alone
# make test-slow  run the slow tests, which stream for minutes
# make lint    run ruff, as pre-commit does, and mypy on the public modules
# make types   run mypy on the public modules
# make docs    build the site of docs/ into build/site, in an environment of its own
# make clean   remove the environments
#
# Settings, given as `make demo NAME=value`:
#   PYTHON       the interpreter for .venv: Python 3.11 or newer, with pip
#   TORCH        the torch to install. The default on Linux is the CPU build, without gigabytes of CUDA libraries, where
#                pip finds one, and else the plain build. With a GPU: TORCH='torch>=2.11,<2.14'
#   TORCH_INDEX  an index with torch's CPU builds, if pip is not configured with one
#   ARGS         options of the demo: make demo ARGS="cache=window"
#   WORKERS      processes for the tests, with one torch thread each; 0 runs all tests in this process
#   TESTS        arguments of pytest: make test TESTS="tests/cache -x"

PYTHON ?= python3
TORCH_VERSION := 2.13.0
TORCH ?=
CPU_BUILD := $(if $(filter Linux,$(shell uname -s)),torch==$(TORCH_VERSION)+cpu)
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= 2
TESTS ?=

VENV := .venv
TORCH_READY := $(VENV)/.torch
READY := $(VENV)/.ready
BIN := $(VENV)/bin
DOCS_VENV := .venv-docs
PIP_INSTALL = $(PYTHON) -m pip --disable-pip-version-check --python
PIP = $(PIP_INSTALL) $(VENV) install
PIP_TORCH = $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: demo test test-attacks test-slow lint types docs clean

demo: $(READY)
	@echo "Watching streamingvlm/assets/pitch/match.mp4, 90 s of a synthetic match, with the embedded model"
	@$(BIN)/python scripts/stream.py output.path=outputs output.overwrite=true $(ARGS)
	@echo "Next: $(BIN)/streamingvlm stream VIDEO for a video of your own, $(BIN)/streamingvlm serve for the page; README.md has more"

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

test-attacks: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m attacks tests/serving/attacks

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(TESTS)

lint: $(READY) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(DOCS_VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DOCS_VENV)

# A stamp file is written last, so that an interrupted installation runs again.
# torch is installed first, so that no other package can choose another build.
$(READY): pyproject.toml $(TORCH_READY)
	$(PIP) pip --editable ".[dev]"
	@touch $@

$(TORCH_READY): pyproject.toml
	$(PYTHON) -m venv --without-pip $(VENV)
	$(if $(TORCH),$(PIP_TORCH) "$(TORCH)",$(INSTALL_TORCH))
	@touch $@

# Only a missing CPU build leads to the plain build, not a network that fails.
define INSTALL_TORCH
@log=$(VENV)/torch.log; \
if [ -n "$(CPU_BUILD)" ]; then \
    $(PIP_TORCH) "$(CPU_BUILD)" 2>$$log && exit 0; \
    grep -q "No matching distribution" $$log || { cat $$log >&2; exit 1; }; \
    echo "make: pip finds no $(CPU_BUILD); installing the plain build, 2.7 GB with CUDA libraries instead of 0.2 GB." \
        "For the small one name an index of CPU builds: make clean $(MAKECMDGOALS) TORCH_INDEX=..." >&2; \
fi; \
$(PIP_TORCH) "torch==$(TORCH_VERSION)"
endef

# The extra `docs` without the package, which needs torch: the API pages are read from the source.
$(DOCS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv --without-pip $(DOCS_VENV)
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
	    > $(DOCS_VENV)/requirements.txt
	$(PIP_INSTALL) $(DOCS_VENV) install --requirement $(DOCS_VENV)/requirements.txt
	@touch $@
