# make demo: set up and run two examples. make test: set up and run the tests. make check: all checks of CI.
# make quick: format, lint, types and the fast tests. make format: fix format and imports.
# make docs: build the documentation. make reference: regenerate the generated blocks of README.md and docs/.
# make stress: the long tests of interrupted runs. make lowest: tests with the lowest versions. make audit: dependencies.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
QUICK := tests/test_layering.py tests/test_naming.py tests/test_docstrings.py tests/config tests/models/parts \
	tests/models/test_plan.py tests/prune/test_budget_search.py tests/prune/test_ratio_search.py tests/report/run \
	tests/report/test_record.py tests/train/test_optimizer.py tests/utils

.PHONY: demo test check quick docs reference stress lowest audit format clean

demo: $(READY)
	$(BIN)/slimvit run digits_vit_dense --out runs/demo_vit --force
	$(BIN)/slimvit run digits_swin_dense --out runs/demo_swin --force

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/zensical build --strict --clean
	$(BIN)/python -m pytest -n auto --dist worksteal

quick: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist worksteal $(QUICK)

docs: $(READY)  # strict: a broken link or an unknown name in the API reference is an error
	$(BIN)/zensical build --strict --clean

reference: $(READY)
	$(BIN)/cog -r -P -I docs -I benchmarks -p 'import generate, tables' --verbosity 1 README.md docs/*.md docs/*/*.md

stress: $(READY)
	SLIMVIT_STRESS=1 SLIMVIT_EXAMPLES=1000 $(BIN)/python -m pytest -n auto --dist worksteal tests/workflows/test_faults.py \
		tests/workflows/test_links.py tests/workflows/test_memory_use.py tests/workflows/test_resume.py tests/workflows/sweep tests/test_damaged_files.py tests/cli/test_hostile.py tests/io/hub

lowest:  # the suite with the lowest versions that setup.cfg allows; warnings of old versions are no errors here
	$(PYTHON) -m venv .cache/lowest
	.cache/lowest/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[dev]'
	.cache/lowest/bin/python -m pytest -n auto --dist worksteal -W default

audit: $(READY)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --local --skip-editable --progress-spinner off

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info runs
