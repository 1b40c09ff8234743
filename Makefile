# The course. `make help` lists what there is.
PYTHON ?= python3
SETUP = $(PYTHON) scripts/setup_environment.py
BIN = "$(patsubst ~/%,$(HOME)/%,$(or $(COURSE_VENV),.venv))/bin"
# They would show the environment the packages of another Python.
unexport PYTHONPATH PYTHONHOME
# In a container the user is often root, and Jupyter wants to be told that this is meant.
ALLOW_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
.PHONY: help setup course lab test quick test-browser bench sync lint lock clean

help:          ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:         ## virtual environment, pinned packages, model and texts
	@$(SETUP)

course:        ## run every lesson end to end and print a table
	@$(SETUP)
	@$(BIN)/course run

lab:           ## open JupyterLab on the learner's notebooks
	@$(SETUP)
	@$(BIN)/course lab $(ALLOW_ROOT)

test:          ## every test, the same that CI runs
	@$(SETUP) --extras libraries,author
	@$(BIN)/ruff check course_utils authoring lessons tests scripts
	@$(BIN)/python -m pytest -m "not browser"

quick:         ## the tests that take seconds
	@$(SETUP) --extras libraries,author
	@$(BIN)/python -m pytest -m "not browser and not slow"

test-browser:  ## run a lesson in JupyterLab in headless Chromium
	@$(SETUP) --extras libraries,author,browser
	@$(BIN)/python -m pytest -m browser tests/platforms

bench:         ## side-by-side measurements, written to recorded/
	@$(SETUP) --extras libraries
	@$(BIN)/course bench

sync:          ## generate notebooks/ and solutions/ from lessons/
	@$(SETUP) --extras libraries,author
	@$(BIN)/course sync

lint:          ## look over the code
	@$(BIN)/ruff check course_utils authoring lessons tests scripts

lock:          ## resolve pyproject.toml again (needs uv)
	@$(PYTHON) scripts/make_lock.py

clean:         ## remove the virtual environment and run results
	rm -rf .venv runs
