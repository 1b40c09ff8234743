# The course. `make help` lists what there is.
PYTHON ?= python3
SETUP = $(PYTHON) scripts/setup_environment.py
BIN = "$(patsubst ~/%,$(HOME)/%,$(or $(COURSE_VENV),.venv))/bin"
# They would show the environment the packages of another Python.
unexport PYTHONPATH PYTHONHOME
# In a container the user is often root, and Jupyter wants to be told that this is meant.
ALLOW_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)
# Two at a time, on any machine: each holds models and computes with several threads.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup
.PHONY: help setup course lab test quick test-browser run-all arm64 bench site sync lint lock clean

help:          ## list the targets
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:         ## virtual environment, pinned packages, model and texts
	@$(SETUP)

course:        ## run every lesson end to end and print a table
	@$(SETUP)
	@$(BIN)/course run

lab:           ## open JupyterLab on your own copies of the notebooks
	@$(SETUP) --lazy
	@$(BIN)/course lab $(ALLOW_ROOT)

test:          ## every test but those of the browser
	@$(SETUP) --extras libraries,author,site,phone
	@$(BIN)/ruff check course_utils authoring docs lessons tests scripts
	@$(PYTEST) -m "not browser" --durations=30

quick:         ## the tests that take seconds
	@$(SETUP) --extras libraries,author,site,phone
	@$(PYTEST) -m "not browser and not slow"

test-browser:  ## a lesson in JupyterLab, and the web site, in headless Chromium
	@$(SETUP) --extras libraries,author,browser,site,phone
	@$(BIN)/python -m pytest -m browser tests/platforms tests/site

run-all:       ## every lesson in JupyterLab in headless Chromium, all cells, with times
	@$(SETUP) --extras libraries,author,browser,site,phone
	@COURSE_EVERY_LESSON=1 $(BIN)/python -m pytest -m browser tests/platforms/test_browser.py \
		-k runs_in_jupyterlab --durations=0 --durations-min=1

arm64:         ## the phone's model under an emulated ARM processor: same tokens?
	@$(SETUP)
	@$(BIN)/python scripts/arm64.py

bench:         ## side-by-side measurements, written to recorded/
	@$(SETUP) --extras libraries
	@$(BIN)/course bench

site:          ## build the web site into build/site
	@$(SETUP) --extras site --no-model
	@$(BIN)/course site

sync:          ## generate notebooks/ and solutions/ from lessons/
	@$(SETUP) --extras libraries,author
	@$(BIN)/course sync

lint:          ## look over the code
	@$(BIN)/ruff check course_utils authoring docs lessons tests scripts

lock:          ## resolve pyproject.toml again (needs uv)
	@$(PYTHON) scripts/make_lock.py

clean:         ## remove the virtual environment and run results
	rm -rf .venv runs
