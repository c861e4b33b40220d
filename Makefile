# make demo   install, paint the example pair, print where the picture is
# make test   install, run the tests
# make lint   install, check style and types
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint
.DELETE_ON_ERROR:

demo: .venv/installed
	@echo "painting examples/raccoon.jpg with the look of examples/cat.jpg (about a minute on 2 cores)"
	@$(BIN)/splice-ff optimize examples/raccoon.jpg examples/cat.jpg --steps 200 -o out/demo.png
	@$(BIN)/python -m eval.grid out/demo-side-by-side.png examples/raccoon.jpg examples/cat.jpg out/demo.png
	@echo "picture: $(CURDIR)/out/demo.png"
	@echo "beside structure and appearance: $(CURDIR)/out/demo-side-by-side.png"

test: .venv/installed
	@$(BIN)/python -m pytest

lint: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.venv/installed: pyproject.toml
	@echo "installing into .venv (once; torch makes it some 6 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" 2>.venv/install.log || (cat .venv/install.log; exit 1)
	@touch $@
