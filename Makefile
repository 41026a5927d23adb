# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C_SOURCES := $(wildcard rt3_tvm/runtime/c/*.c rt3_tvm/runtime/c/*.h rt3_tvm/runtime/c/*.hpp rt3_tvm/bench/*.c examples/*.cpp tests/runtime/*.c tests/runtime/*.cpp)

.PHONY: demo test check format clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy rt3_tvm
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_SOURCES)

# torch first and by pip alone: resolved with the rest it could be replaced by a CUDA build.
$(STAMP): pyproject.toml
	@echo "rt3-tvm: an environment in $(VENV): PyTorch first, then TVM and the rest; minutes on a fresh machine, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,bench,cross,report,search,ray,dev]'
	touch $@

clean:
	rm -rf build $(VENV)
