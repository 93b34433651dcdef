# README's commands. Everything they install goes to .venv, everything they write to demo/.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: check test slow

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: .venv/installed
	$(BIN)/python -m pytest -m 'not slow'

slow: .venv/installed
	$(BIN)/python -m pytest -m slow || test $$? -eq 5
