# Set-up is two commands: `make quickstart` runs the main job, `make test` passes the tests.
# uv is used where it is installed; otherwise it is fetched into a private environment of its own.

UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --no-sync
PYTHON ?= python3

.PHONY: setup quickstart test lint bench clean

setup: .venv/.ready

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

.venv/.ready: pyproject.toml | $(filter .uv/bin/uv,$(UV))
	@test -d .venv || echo "installing into .venv: torch with its CUDA libraries takes 5.6 GB, once"
	$(UV) sync --quiet
	@touch $@

quickstart: setup
	$(RUN) snnkit quickstart

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

test: lint
	$(RUN) pytest

bench: setup
	$(RUN) python benchmarks/quickstart.py
	$(RUN) python benchmarks/digits.py
	$(RUN) python benchmarks/train.py

clean:
	rm -rf .venv .uv runs
