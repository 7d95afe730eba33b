# Every target makes the virtual environment that it needs, once. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# Files that say what the environment holds; `.venv/.dev` stands for everything in `.venv/.local`, too.
MADE := $(VENV)/.made
LOCAL := $(VENV)/.local
DEV := $(VENV)/.dev
PINS := pyproject.toml client/pyproject.toml constraints.txt

# An environment whose Python is gone, or that was made in another folder, is made anew.
_ := $(shell "$(BIN)/python" -c "" 2>/dev/null && [ "`cat $(MADE) 2>/dev/null`" = "$(CURDIR)" ] \
	|| rm -f $(MADE) $(LOCAL) $(DEV))

.NOTPARALLEL:
.PHONY: help demo test test-unit test-costs test-models test-integration test-gpu test-e2e check fuzz up lint bench venv

help:
	@echo "make demo    start everything, ingest examples/documents, ask two questions, stop"
	@echo "make up      start everything on this machine and keep it running"
	@echo "make check   style, types, import contracts and the unit tests, in about a minute"
	@echo "make test    run all tests; test-unit, test-costs, test-models, test-integration, test-gpu, test-e2e: one tier"
	@echo "make fuzz    look for documents and requests that are neither taken nor refused as they should be"
	@echo "make lint    check style, types and import contracts"
	@echo "make bench   measure ingestion, submission, generation and tasks"
	@echo "make venv    only make the virtual environment"

demo: $(LOCAL)
	@$(BIN)/python examples/demo.py

up: $(LOCAL)
	@echo "The command is $(BIN)/sluice; in another terminal: source $(BIN)/activate"
	@exec $(BIN)/sluice up

# Tests start hundreds of processes: each compiles all modules again where this is set.
export PYTHONDONTWRITEBYTECODE :=

TESTS := $(BIN)/python -m pytest -p tests.forks
# Four processes on two cores: they wait for servers half of the time. The slow files come first, so
# that no process is alone with one at the end.
FOUR := --processes 4
TWO := --processes 2
# A stack for each of three; the file that ends its stack stays the last.
STACKS := --processes 3

test: $(DEV)
	$(TESTS) tests/unit tests/costs tests/integration tests/models tests/gpu $(FOUR)
	$(TESTS) tests/e2e $(STACKS)

test-unit: $(DEV)
	$(TESTS) tests/unit $(TWO)

test-costs: $(DEV)
	$(TESTS) tests/costs $(TWO)

test-models: $(DEV)
	$(TESTS) tests/models $(FOUR)

test-integration: $(DEV)
	$(TESTS) tests/integration $(FOUR)

test-gpu: $(DEV)
	$(TESTS) tests/gpu

test-e2e: $(DEV)
	$(TESTS) tests/e2e $(STACKS)

# Types and contracts beside the tests, for a machine of two cores; what they say comes after the tests.
check: $(DEV)
	@$(BIN)/python -m ruff check && $(BIN)/python -m ruff format --check
	@types=`mktemp` && { \
		{ $(BIN)/python -m mypy && $(BIN)/lint-imports; } > $$types 2>&1 & \
		$(MAKE) --no-print-directory test-unit; tests=$$?; \
		wait $$!; failed=$$?; cat $$types; rm $$types; [ $$tests = 0 ] && [ $$failed = 0 ]; }

# EXAMPLES are tried of each format and of each operation; 1000 take about an hour.
EXAMPLES ?= 200
fuzz: $(DEV)
	SLUICE_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/unit/test_format_fuzz.py \
		tests/e2e/test_schemathesis.py

lint: $(DEV)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(DEV)
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.submit
	$(BIN)/python -m bench.generate --rounds 1
	$(BIN)/python -m bench.hf --rounds 3

venv: $(DEV)

$(MADE):
	@sh deploy/preflight.sh before "$(PYTHON)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@printf '%s' "$(CURDIR)" > $@

$(LOCAL): $(MADE) $(PINS)
	@echo "Installing Sluice into $(VENV) (some minutes the first time) ..."
	@$(PIP) -e ./client -e ".[local]" || sh deploy/preflight.sh after "$(PYTHON)"
	@touch $@

$(DEV): $(MADE) $(PINS)
	@echo "Installing Sluice and its tools into $(VENV) (some minutes the first time) ..."
	@$(PIP) -e ./client -e ".[dev]" || sh deploy/preflight.sh after "$(PYTHON)"
	@touch $(LOCAL) $@
