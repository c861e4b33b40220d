# make demo   install, paint the example pair, print where the images are
# make test   install, run the tests
# make lint   install, check style and types
# make web    install, gather the page that paints in the browser into web/dist
# make official   install, download the official DINO weights, check them, paint a sample pair: out/official
# make docs   install mkdocs, build the documentation into out/site
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint web official docs
.DELETE_ON_ERROR:

demo: .venv/installed
	@echo "painting examples/cat.jpg with the look of examples/raccoon.jpg: one-shot, then 100 refining steps"
	@$(BIN)/splice-ff transfer examples/cat.jpg examples/raccoon.jpg -o out/one-shot.png
	@$(BIN)/splice-ff transfer examples/cat.jpg examples/raccoon.jpg -o out/refined.png --refine 100
	@$(BIN)/python -m eval.grid out/side-by-side.png \
		examples/cat.jpg examples/raccoon.jpg out/one-shot.png out/refined.png
	@echo "images: $(CURDIR)/out/one-shot.png $(CURDIR)/out/refined.png"
	@echo "beside structure and appearance: $(CURDIR)/out/side-by-side.png"

test: .venv/installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # a thread each: two processes share two cores

lint: .venv/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

web: .venv/installed
	@PYTHON=../$(BIN)/python web/build.sh everyday
	@echo "now: python -m http.server --directory web/dist"

official: .venv/installed
	@$(BIN)/python -m eval.official -o out/official

docs: .venv/docs-installed
	@$(BIN)/mkdocs build --strict --site-dir out/site
	@echo "open $(CURDIR)/out/site/index.html"

.venv/installed: pyproject.toml
	@echo "installing into .venv (once; torch makes it some 5 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" 2>.venv/install.log || (cat .venv/install.log; exit 1)
	@touch $@

.venv/docs-installed: .venv/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]" 2>.venv/install.log || (cat .venv/install.log; exit 1)
	@touch $@
