# `make demo` and `make test` set up everything they need in .venv and then run.
PYTHON ?= python3
BIN := .venv/bin

# Tests that run the commands and programs of README and docs.
OF_DOCS := tests/test_readme.py $(wildcard tests/test_docs*.py tests/test_learn*.py) tests/inside/test_inside_page.py

.PHONY: setup demo test test-docs test-faults lint docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "gpt2 needs Python 3.11 or newer; give one with make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@# A Linux machine without an NVIDIA GPU is spared gigabytes of CUDA where pip can find the CPU build.
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  version=$$(sed -n 's/^torch==//p' constraints.txt); \
	  echo "installing PyTorch $$version, the CPU build if pip finds one"; \
	  $(BIN)/pip install -q -c constraints.txt "torch==$$version+cpu" 2>/dev/null || true; \
	fi
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/gpt2 demo

test: setup lint
	$(BIN)/python -m pytest -n 2 $(OF_DOCS:%=--ignore=%)

test-docs: setup
	$(BIN)/python -m pytest -n 2 $(OF_DOCS)

test-faults: setup
	GPT2_TEST_FAULTS=1 GPT2_TEST_WORLDS=2,4 GPT2_TEST_DAMAGES=500 \
	  $(BIN)/python -m pytest tests/distributed tests/test_checkpoint.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# The pages are copied, with what they link to, because Zensical takes a folder that does not contain its own output.
docs: setup
	@test -x $(BIN)/zensical || $(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	rm -rf build/pages site
	mkdir -p build/pages
	tar -cf - --exclude=__pycache__ *.md LICENSE benchmarks docs launch notebooks src tests | tar -xf - -C build/pages
	$(BIN)/zensical build --clean --strict
	@echo "the start page is site/index.html; $(BIN)/python -m http.server -d site shows it with the search"

clean:
	rm -rf .venv build dist site
