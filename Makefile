# `make` alone lists what there is. Everything happens in .venv; nothing is installed outside it but what `make test` says.
SHELL         := /bin/sh
PYTHON        ?= python3
TORCH_INSTALL ?= torch==2.13.0
LAB_ARGS      ?=
N_WORKERS     ?= 2

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := PYTHONWARNINGS=ignore $(PY) -m pip install -q --disable-pip-version-check -c requirements.txt
STAMP := $(VENV)/.stamp
STAGES := sync notebooks docs-check pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test $(STAGES) export readme system clean distclean

help: ## this list
	@echo "make demo          the shipped model, its neurons, and a report in demo/report.html"
	@echo "make lab           JupyterLab on nbs/tutorials/01_tour.ipynb (LAB_ARGS=... is passed on)"
	@echo "make test          everything: sync, notebooks, docs-check, pytest"
	@echo "make setup         .venv with everything that the other targets need"
	@echo "make sync          notebooks clean, modules equal notebooks, README equals nbs/index.ipynb"
	@echo "make notebooks     run all notebooks (N_WORKERS=$(N_WORKERS) at a time)"
	@echo "make docs-check    build the documentation pages; links, warnings, outside resources"
	@echo "make pytest        tests/ (the browser tests need Chromium)"
	@echo "make export        write mmneuron_nb/ from nbs/, clean the notebooks"
	@echo "make readme        write README.md from nbs/index.ipynb"
	@echo "make clean         remove what was made; make distclean: .venv as well"
	@echo
	@echo "PYTHON=$(PYTHON)      which Python makes .venv (3.10 to 3.13)"
	@echo "TORCH_INSTALL='$(TORCH_INSTALL)'      what pip is asked for as PyTorch. On Linux the package index's"
	@echo "  build brings several GB of CUDA; for the CPU build add PyTorch's own index:"
	@echo "  make demo TORCH_INSTALL=\"torch==2.13.0 --index-url <PyTorch's CPU index>\""

# -- the virtual environment: each step once, unless what it was made from changed
$(STAMP).venv:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): 'apt-get install python3 python3-venv', or name another with PYTHON=."; exit 1; }
	@$(PYTHON) tools/check_python.py
	@echo "Making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip setuptools wheel
	@touch $@

$(STAMP).torch: $(STAMP).venv
	@echo "Installing $(TORCH_INSTALL)"
	@$(PIP) $(TORCH_INSTALL)
	@touch $@

$(STAMP).run: $(STAMP).torch requirements.txt settings.ini setup.py
	@echo "Installing the package and what it needs"
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(STAMP).lab: $(STAMP).run
	@echo "Installing JupyterLab"
	@$(PIP) --no-build-isolation -e '.[lab]'
	@touch $@

$(STAMP).dev: $(STAMP).lab
	@echo "Installing what the tests need"
	@$(PIP) --no-build-isolation -e '.[lab,dev]'
	@touch $@

setup: $(STAMP).dev

# -- what people do
demo: $(STAMP).run ## record, classify, report
	@$(VENV)/bin/mmneuron demo
	@echo
	@echo "Go on with 'make lab': it opens the tour in JupyterLab."

lab: $(STAMP).lab ## JupyterLab on the tour
	@$(VENV)/bin/jupyter lab $$(test "$$(id -u)" != 0 || echo --allow-root) --ServerApp.root_dir=nbs --LabApp.default_url=/lab/tree/tutorials/01_tour.ipynb $(LAB_ARGS)

test: $(STAMP).dev system ## every stage, also after one has failed; the last line counts
	@$(PY) tools/stages.py $(STAGES)

# -- the stages of the tests: no network, no history of the user's, one thread per worker
$(STAGES): export HF_HUB_OFFLINE = 1
$(STAGES): export OMP_NUM_THREADS = 1
$(STAGES): export MPLCONFIGDIR = $(CURDIR)/$(VENV)/matplotlib
$(STAGES): export IPYTHONDIR = $(CURDIR)/$(VENV)/ipython
$(STAGES): export JUPYTER_PLATFORM_DIRS = 1

sync: $(STAMP).dev
	@$(PY) tools/hygiene.py

notebooks: $(STAMP).dev
	@$(PY) tools/notebooks.py --workers $(N_WORKERS)

docs-check: $(STAMP).dev
	@$(PY) tools/docs.py

pytest: $(STAMP).dev
	@BROWSER_PATH="$${BROWSER_PATH:-$$(sh tools/system.sh --which)}" $(PY) -m pytest tests -q -n $(N_WORKERS) --dist loadfile --durations=5

system:
	@sh tools/system.sh

# -- what is made from notebooks
export: $(STAMP).dev
	@$(VENV)/bin/nbdev_export
	@$(VENV)/bin/nbdev_clean

readme: $(STAMP).dev
	@$(PY) tools/readme.py

clean:
	@rm -rf _proc _docs build dist demo screenshots .pytest_cache .hypothesis *.egg-info nbs/nbdev.yml
	@find mmneuron_nb nbs tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@find mmneuron_nb nbs tests -name .ipynb_checkpoints -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
