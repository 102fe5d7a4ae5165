# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Python writes down what it compiles, also where the machine's settings forbid it: else each process that a test starts compiles all of
# torch again, which takes twice as long as importing it.
export PYTHONDONTWRITEBYTECODE :=

KERNELS := CMakeLists.txt $(wildcard src/secateurs/run/csrc/* src/secateurs/coding/csrc/*)

.PHONY: always demo test coverage mcu sanitize sanitize-coding lint types install install-dev clean

demo: $(VENV)/.installed
	$(BIN)/secateurs demo --force

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -q --durations=25 $(PYTEST)

# As `make test`, with the lines and branches that no test reaches; tracing takes half as long again.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term -q $(PYTEST)

# C for microcontrollers on emulated cores; these tests are part of `make test` too, where they skip without the emulator.
mcu: $(VENV)/.installed-dev
	@command -v arm-none-eabi-gcc > /dev/null && command -v qemu-system-arm > /dev/null || \
	  { echo "an emulated Cortex-M is needed; on Debian: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"; exit 1; }
	$(BIN)/python -m pytest -n auto -q $(wildcard tests/test_firmware*.py) tests/test_emulator.py

# The kernels' tests once more, on a build that checks every access to memory and every shift and overflow; and those of the coders.
SANITIZED := build/sanitized
# A build: its folder, a target, flags of what is not sanitized; then tests: the variable that names the build, the build, the tests.
define sanitized
	mkdir -p build
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake -S . -B $(1) -G Ninja -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="$(3)" \
	  -DSECATEURS_SANITIZE=ON -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/$(1)" \
	  > $(1).log || { cat $(1).log; exit 1; }
	$(BIN)/cmake --build $(1) --target $(2) >> $(1).log || { cat $(1).log; exit 1; }
	$(4)="$$(ls $(CURDIR)/$(5)/_native*.so)" LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(BIN)/python -m pytest -q -p no:cacheprovider $(6)
endef

sanitize: $(VENV)/.installed-dev
	$(call sanitized,$(SANITIZED),_native,-O2 -g -DNDEBUG,SECATEURS_NATIVE,$(SANITIZED),-n auto tests/test_kernels.py tests/test_gemv.py)

sanitize-coding: $(VENV)/.installed-dev
	$(call sanitized,$(SANITIZED)-coding,coding_native,-O0,SECATEURS_CODING_NATIVE,$(SANITIZED)-coding/coding,tests/test_coders.py tests/test_rate_distortion.py -k "not squeezenet")

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed; name one with: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# An editable installation knows the package file by file: it is made anew where files have come, gone or moved.
FILES := $(VENV)/.files
$(FILES): always | $(BIN)/python
	@find src -name '*.py*' -not -name '*.pyc' | sort | cmp -s - $@ || find src -name '*.py*' -not -name '*.pyc' | sort > $@

# Python compiles what it imports; pip would compile all of torch, sympy and scikit-learn: a third of the installation.
$(VENV)/.installed: pyproject.toml constraints.txt $(KERNELS) $(FILES) | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(KERNELS) $(FILES) | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist secateurs-demo .pytest_cache .mypy_cache .ruff_cache .coverage
