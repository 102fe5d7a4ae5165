# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Python writes down what it compiles, also where the machine's settings forbid it: else each process that a test starts compiles all of
# torch again, which takes twice as long as importing it.
export PYTHONDONTWRITEBYTECODE :=

KERNELS := CMakeLists.txt $(wildcard src/secateurs/run/csrc/*)

.PHONY: always demo test coverage sanitize lint types install install-dev clean

demo: $(VENV)/.installed
	$(BIN)/secateurs demo --force

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal -q --durations=25 $(PYTEST)

# As `make test`, with the lines and branches that no test reaches; tracing takes half as long again.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term -q $(PYTEST)

# The kernels' tests once more, on a build that checks every access to memory and every shift and overflow.
SANITIZED := build/sanitized
sanitize: $(VENV)/.installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSECATEURS_SANITIZE=ON \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$(CURDIR)/$(SANITIZED)" > $(SANITIZED).log || \
	  { cat $(SANITIZED).log; exit 1; }
	$(BIN)/cmake --build $(SANITIZED) >> $(SANITIZED).log || { cat $(SANITIZED).log; exit 1; }
	SECATEURS_NATIVE="$$(ls $(CURDIR)/$(SANITIZED)/_native*.so)" LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(BIN)/python -m pytest -q -n auto -p no:cacheprovider tests/test_kernels.py tests/test_gemv.py

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
