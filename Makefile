# make demo: set up and run the main job. make test: set up and pass the tests. make check: test, format, lint, types.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check stress lowest audit format clean

demo: $(READY)
	$(BIN)/slimvit run digits_vit_dense --out runs/demo_vit --force
	$(BIN)/slimvit run digits_swin_dense --out runs/demo_swin --force

test: $(READY)
	$(BIN)/python -m pytest -n auto

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto

stress: $(READY)
	SLIMVIT_STRESS=1 SLIMVIT_EXAMPLES=1000 $(BIN)/python -m pytest -n auto tests/test_faults.py tests/test_hostile.py \
		tests/test_load.py tests/hub

lowest:  # the suite with the lowest versions that setup.cfg allows; what they warn of is past mending
	$(PYTHON) -m venv .cache/lowest
	.cache/lowest/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[dev]'
	.cache/lowest/bin/python -m pytest -n auto -W default

audit: $(READY)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --local --skip-editable --progress-spinner off

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs
