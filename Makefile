# make demo, make test: set up .venv on first use, then run. A machine with python3 (and its venv module) is enough;
# with a C++ compiler the native extension is built too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# Everything comes from the locks in requirements/, which are complete: nothing is resolved, and no newer release is taken.
# torch stands alone: without a GPU its CPU build is taken, whose index is asked for nothing else.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(HAS_GPU),0)
BUILD := cpu
TORCH_INDEX ?= --index-url https://download.pytorch.org/whl/cpu --retries 1
else
BUILD := cuda
endif
LOCK := requirements/$(BUILD).txt
TORCH := requirements/torch-$(BUILD).txt
CLIENTS := requirements/clients.txt
PIP := $(BIN)/python -m pip install --no-deps --no-compile --disable-pip-version-check
INSTALL := $(PIP) -qq --require-hashes --only-binary :all:
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs

.PHONY: help setup demo test fuzz test-long test-versions test-gpu-code lint format docs lock bench train-mini clean

help:
	@echo "make setup   create $(VENV) with the package, all simulators and the development tools"
	@echo "make demo    play an agent in real environments of all four domains"
	@echo "make test    run the tests"
	@echo "make test-long  kill evaluations a hundred times, act 100,000 steps, write after 200 prompts, serve 10,000 connections, fuzz (an hour and a half)"
	@echo "make fuzz    fuzz the policy server's message parsers, and a whole server, for FUZZ_SECONDS (60)"
	@echo "make test-versions  run a part of the tests with the oldest and the newest releases of the dependencies"
	@echo "make test-gpu-code  execute the code for GPUs on this CPU, with the oldest and the newest Triton"
	@echo "make lint    ruff, import-linter, mypy, clang-format"
	@echo "make docs    build the documentation into site/; broken links are errors"
	@echo "make bench   measure this machine and every peer that is installed (an hour)"
	@echo "make train-mini  make jat-mini again: demonstrations, training, scores (hours on two cores)"
	@echo "make format  apply the formatters"
	@echo "make lock    write requirements/*.txt; UPGRADE=numpy takes its newest release, UPGRADE=all that of everything"
	@echo "make clean   remove $(VENV) and build output"

setup: $(READY)

$(INSTALLED): $(TORCH) $(LOCK) $(CLIENTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed (Meta-World's MuJoCo has no later one): make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "No virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	$(PIP) -qq $(TORCH_INDEX) -r $(TORCH)
	$(INSTALL) -r $(LOCK)
	$(INSTALL) -r $(CLIENTS)
	@touch $@

$(READY): $(INSTALLED) setup.py CMakeLists.txt $(shell find csrc -type f)
	$(PIP) -q --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/jat-engine demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Findings are written to build/fuzz. To run one again: cd tests && python -m helpers.fuzzing TARGET FILE
FUZZ_SECONDS ?= 60
fuzz: setup
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m helpers.fuzzing --seconds $(FUZZ_SECONDS)

test-long: setup
	$(BIN)/python -m pytest -m long -s

test-versions: setup
	OMP_NUM_THREADS=1 $(BIN)/python requirements/versions.py $(SETS)

# Only a part, see PARTS=list: make test-gpu-code PARTS="newest/sm_90/*"
test-gpu-code: setup
	$(BIN)/python requirements/gpu_code.py $(foreach part,$(PARTS),'$(part)')

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inl')

# The tools that build the site have a lock of their own, so that setup stays fast.
$(DOCS): requirements/docs.txt $(READY)
	$(INSTALL) -r $<
	@touch $@

docs: $(DOCS)
	$(BIN)/python docs/write_file_map.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: setup
	$(BIN)/python requirements/lock.py $(UPGRADE)

bench: setup
	$(INSTALL) -r requirements/peers.txt
	$(BIN)/jat-engine bench all --output-json results.json

# Without these, large tensors are fresh pages from the kernel each time, and threads sleep at every barrier.
train-mini: setup
	GOMP_SPINCOUNT=20000 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 \
		$(BIN)/python -m jat_engine.recipes.jat_mini

clean:
	rm -rf $(VENV) build site *.egg-info jat_engine/*.so
