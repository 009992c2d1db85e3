# The commands of a checkout. Each does its own set-up in .venv/; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extra arguments for pytest, and for the benchmarks:  make test ARGS="-k ring -x"
ARGS ?=
# Versions that `make test-all` looks for.
PYTHONS ?= 3.10 3.11 3.12 3.13

.DEFAULT_GOAL := help
.PHONY: help demo test build lint types native docs reference bench debug asan tsan test-all dist-check clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- set-up ------------------------------------------------------------------------------------------------

# An environment's scripts hold its path: where the checkout was copied or moved, it is made anew.
ifneq ($(wildcard $(VENV)/path),)
ifneq ($(shell cat $(VENV)/path),$(abspath $(VENV)))
$(shell rm -rf $(VENV))
endif
endif

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mullama needs Python 3.10 or later; name one:  make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo '$(abspath $(VENV))' > $(VENV)/path

# All that building, testing and linting need; again when pyproject.toml changes.
$(VENV)/ready: pyproject.toml tools/build_requirements.py vendor/llama.cpp.toml | $(BIN)/python
	$(BIN)/python tools/build_requirements.py test > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --upgrade pip -r $(VENV)/requirements.txt
	@touch $@

# The package itself, editable: for its metadata and its command. Its extension is built by `build` below.
$(VENV)/installed: $(VENV)/ready setup.py | build
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

build: $(VENV)/ready ## build the extension in place (seconds if little has changed)
	$(BIN)/python setup.py --quiet build_ext --inplace

# -- what you came for -------------------------------------------------------------------------------------

demo: build $(VENV)/installed ## stream three stories: under asyncio, under trio, and one cut short
	$(BIN)/python examples/demo.py

test: lint build $(VENV)/installed types ## run all checks: lint, types, stubs, tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/ready ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: build $(VENV)/installed ## check types strictly with mypy and pyright, and the stub against the extension
	$(BIN)/mypy --strict mullama tests/typed_calls.py
	$(BIN)/python -m mypy.stubtest mullama._core
	$(BIN)/basedpyright
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=. $(BIN)/basedpyright --verifytypes mullama --ignoreexternal

docs: build $(VENV)/installed ## test the documentation: its examples, links and reference
	$(BIN)/python -m pytest tests/test_docs.py tests/test_docs_examples.py $(ARGS)

reference: build $(VENV)/installed ## write the generated parts of docs/reference/ from the docstrings
	$(BIN)/python tools/reference.py

bench: build $(VENV)/installed ## measure, print tables, write docs/benchmarks.md; ARGS="one_stream" for a single benchmark
	$(BIN)/python bench/report.py $(ARGS)

# -- other builds and other Pythons ------------------------------------------------------------------------

debug: $(VENV)/ready ## build our sources in place with -O0 -g and assertions (`make build` undoes it)
	MULLAMA_DEBUG=1 $(BIN)/python setup.py --quiet build_ext --inplace

native: build $(VENV)/installed ## build and run the C++ test programs: ring, notifier, team and text on their own
	$(BIN)/python -m pytest tests/native $(ARGS)

asan: $(VENV)/ready $(VENV)/installed ## run the suite under AddressSanitizer and UBSan, in a copy of the tree
	$(BIN)/python tools/build_sanitized.py address $(ARGS)

tsan: $(VENV)/ready $(VENV)/installed ## run the concurrent part of the suite, its C++ programs included, under ThreadSanitizer
	$(BIN)/python tools/build_sanitized.py thread $(ARGS)

test-all: ## `make test` with each installed version of Python 3.10 to 3.13, with one build of llama.cpp
	@set -e; found=$$($(PYTHON) tools/build_pythons.py $(PYTHONS)); \
	echo "$$found" | while read -r version python; do \
		echo "== Python $$version: $$python"; \
		$(MAKE) test PYTHON="$$python" VENV="build/venv-$$version" </dev/null || exit 1; \
	done

dist-check: $(VENV)/ready ## build sdist and wheel, and test both in empty environments
	$(BIN)/python tools/build_dist_check.py

clean: ## remove what was built (but not .venv/ or the unpacked source)
	rm -rf build dist mullama.egg-info mullama/_core*.so $(VENV)/installed

distclean: clean ## remove everything that these commands have created
	rm -rf .venv vendor/llama.cpp vendor/licenses .pytest_cache .mypy_cache .ruff_cache .hypothesis
