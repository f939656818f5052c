# Needs make and Python 3.11 or newer; everything else is installed into .venv on first use.

# The first Python that is new enough; choose another with `make PYTHON=...`.
NEW    := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            $$p -c $(NEW) 2>/dev/null && echo $$p && exit; done; echo python3)
PY     := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup book check-site pdf test again mutants sync serve-book bench clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## create .venv with the pinned versions (the others do this first)
	@$(PYTHON) book/install.py

book: setup ## run every notebook and render the site into book/_build/html
	@$(PY) book/build.py

pdf: book ## print the whole book into book/_build/minigpt.pdf; needs Chromium or Chrome
	@$(PY) -m pip install --quiet --disable-pip-version-check -r book/requirements-pdf.txt
	@$(PY) book/pdf.py

check-site: setup ## check the built site again: files, links, every page in a browser
	@$(PY) book/check_site.py

test: setup ## every check: notebooks in step and clean, lint, every notebook run, pytest
	@$(PY) book/verify.py

again: setup ## measure again what chapters read from nbs/measured: half an hour or more
	@MINIGPT_AGAIN=1 $(PY) book/run.py --measured

mutants: setup ## plant known faults, one at a time: the test named for each must notice it
	@$(PY) tests/mutants.py

sync: setup ## carry text twins into the notebooks, clean those, export them into the package
	@$(PY) book/twins.py && $(PY) book/export.py

serve-book: setup ## show the book while it is being edited
	@$(PY) book/serve.py

bench: setup ## measure speed; prints a table and writes JSON
	@$(PY) -m benchmarks

clean: ## remove what was built; the environment in .venv stays
	@rm -rf book/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find book minigpt nbs tests -name __pycache__ -type d -prune -exec rm -rf {} +
