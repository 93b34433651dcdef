# README's commands. Everything they install goes to .venv, everything they write to demo/.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: check test slow faults test-slurm demo demo-data

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not slurm and not faults'

slow: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow and not slurm and not faults' || test $$? -eq 5

# hundreds of injected faults, hours; writes the table of docs/reliability.md. Fewer: make faults FAULTS='kills soak --kills 20 --soak 5'
FAULTS ?=
faults: .venv/installed
	$(BIN)/python -m tests.faults --write $(FAULTS)

# starts a Slurm of three virtual nodes on this machine (as root, by ../shared/tools/local_slurm), and ends it
test-slurm: .venv/installed
	$(BIN)/python -m pytest -rs -m slurm tests/slurm

demo-data: .venv/installed
	test -d demo/world/data_2018_china_masked.zarr || $(BIN)/python -m aqnet.data.synthetic --output demo/world --years 2015-2018
	$(BIN)/python -m aqnet.data.prepare --config configs/demo.yaml --workers 2

# 500 of the test year's 8,664 input times, drawn once: all of them take minutes
demo: demo-data
	$(BIN)/python train.py --config configs/demo.yaml
	$(BIN)/python evaluate.py --checkpoint demo/run --output demo/report --max-samples 500
