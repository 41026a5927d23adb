# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C_SOURCES := $(wildcard rt3_tvm/runtime/c/*.c rt3_tvm/runtime/c/*.h rt3_tvm/runtime/c/*.hpp rt3_tvm/bench/*.c rt3_tvm/energy/*.c rt3_tvm/tune/*.c examples/*.cpp tests/runtime/*.c tests/runtime/*.cpp)

.PHONY: demo test check format clean

demo: $(STAMP)
	@echo "demo: loading PyTorch and TVM ..."
	@$(BIN)/python examples/demo.py

# How the tests run (on all cores, with the slowest printed) stands in pyproject.toml: this is `pytest` and nothing more.
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
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

$(STAMP): pyproject.toml
	@echo "setup: everything goes into $(VENV), once; a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: installing PyTorch (1 of 2) ..."
	@$(PIP) torch==2.13.0
	@echo "setup: installing TVM, transformers, ONNX Runtime, OpenVINO, Ray, zig and the tools (2 of 2) ..."
	@$(PIP) --editable '.[demo,bench,cross,report,search,ray,tune,dev]'
	@touch $@

clean:
	rm -rf build $(VENV)
