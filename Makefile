# make demo, make test: set up .venv on first use, then run. A machine with python3 (and its venv module) is enough;
# with a C++ compiler the native extension is built too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Without a GPU torch is pinned to a release that has a CPU build, so that no CUDA packages are downloaded.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(HAS_GPU),0)
CONSTRAINTS := -c constraints-cpu.txt
TORCH_INDEX := --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: help setup demo test lint format bench train-mini clean

help:
	@echo "make setup   create $(VENV) with the package, all simulators and the development tools"
	@echo "make demo    play an agent in real environments of all four domains"
	@echo "make test    run the tests"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make bench   measure this machine, beside every peer that is installed (15 minutes)"
	@echo "make train-mini  make jat-mini anew: demonstrations, training, scores (hours on two cores)"
	@echo "make format  apply the formatters"
	@echo "make clean   remove $(VENV) and build output"

setup: $(READY)

$(READY): setup.py pyproject.toml constraints-cpu.txt CMakeLists.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jat_engine needs Python >= 3.11; choose one with make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "No virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install -q $(CONSTRAINTS) $(TORCH_INDEX) torch
	$(BIN)/pip install -q $(CONSTRAINTS) -e '.[all,dev]'
	@touch $@

demo: setup
	$(BIN)/jat-engine demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

bench: setup
	$(BIN)/pip install -q $(CONSTRAINTS) -e '.[peers]'
	$(BIN)/jat-engine bench all --output-json results.json

# Without these, large tensors are fresh pages from the kernel each time, and threads sleep at every barrier.
train-mini: setup
	GOMP_SPINCOUNT=20000 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
		$(BIN)/python -m jat_engine.mini

clean:
	rm -rf $(VENV) build *.egg-info jat_engine/*.so
