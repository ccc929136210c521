# The commands of the project. `make demo` and `make test` need Python 3.11, make and pip, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONSAFEPATH := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
.PHONY: help dev check stubs test test-all demo cluster bench bench-gpu clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

dev: $(STAMP)  ## make .venv with the pinned versions

check: $(STAMP)  ## linters, type checker and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

stubs: $(STAMP)  ## make the gRPC messages and stubs again from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src --grpc_python_out=src src/hansa/federation/*.proto

test: $(STAMP)  ## all tests but the slow ones
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: $(STAMP)  ## every test
	$(BIN)/pytest -q -n 2

demo: $(STAMP)  ## fifteen banks fine-tune one model together (about two minutes)
	$(BIN)/hansa demo bank

cluster: $(STAMP)  ## a coordinator and five agents as processes, TLS on, run the bank example (about two minutes)
	$(BIN)/hansa demo cluster

bench: $(STAMP)  ## utility (15 banks, epsilon 8, three seeds), then secure aggregation, experts, private step, privacy (quick)
	$(BIN)/python benchmarks/bank_utility.py
	$(BIN)/python benchmarks/utility.py --quick
	$(BIN)/python benchmarks/secure_agg.py --quick
	$(BIN)/python benchmarks/moe.py --quick
	$(BIN)/python benchmarks/dp_step.py --quick
	$(BIN)/python benchmarks/privacy.py --quick

bench-gpu: $(STAMP)  ## every Triton kernel against its reference and its bound, on a CUDA GPU
	$(BIN)/python benchmarks/gpu.py

clean:  ## remove everything that make made
	rm -rf $(VENV) build dist hansa-demo hansa-cluster .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
