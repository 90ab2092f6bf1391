# Every target sets itself up: a .venv in the checkout with the exact versions of
# constraints.txt. Choose another interpreter with `make PYTHON=python3.13 test`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow test-gpu parity lint clean

demo: $(VENV)/.run
	$(BIN)/pit-jax sweep experiments/demo.py --workdir runs/demo
	$(BIN)/pit-jax compare runs/demo --out runs/demo/report.html
	@echo "The command is $(BIN)/pit-jax; \`source $(BIN)/activate\` puts it on the PATH."

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.parity
	$(BIN)/python -m pytest -m slow

# Compiles for GPUs that are not here; the compiler is in JAX's CUDA wheels, 4.5 GB of them.
test-gpu: $(VENV)/.test
	$(PIP) -e '.[test,cuda]'
	$(BIN)/python -m pytest tests/perf/test_gpu.py

parity: $(VENV)/.parity
	$(BIN)/python -m pytest -m "parity and not slow"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "pit_jax needs Python 3.11 or newer on the PATH"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made setup.cfg constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.made setup.cfg constraints.txt
	$(PIP) -e '.[test]'
	@touch $@

# pytorch-fid comes with torchvision, and beside a torch of another build torchvision breaks
# whatever imports it: both get a place of their own, which only the test of FID looks into.
$(VENV)/.parity: $(VENV)/.test
	$(PIP) -e '.[test,parity]'
	$(PIP) --no-deps --target $(VENV)/pytorch-fid --upgrade pytorch-fid torchvision
	@touch $@
