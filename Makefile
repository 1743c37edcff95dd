# `make` alone lists what there is. Everything happens in .venv; nothing is installed outside it but what `make test` says.
SHELL         := /bin/sh
PYTHON        ?= python3
TORCH_INSTALL ?= torch==2.13.0
LAB_ARGS      ?=
N_WORKERS     ?= 2
EXTRAS        ?= lab,dev

VENV  := .venv
PY    := $(VENV)/bin/python
# --no-compile: Python compiles what it imports, which is a fifth of what lies in .venv
PIP   := PYTHONWARNINGS=ignore $(PY) -m pip install -q --disable-pip-version-check --no-compile -c requirements.txt
STAMP := $(VENV)/.stamp
comma := ,
DEV   := $(STAMP).$(subst $(comma),-,$(EXTRAS))
STAGES := sync notebooks docs-check pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo lab test $(STAGES) export readme system clean distclean

help: ## this list
	@echo "make demo          the shipped model, its neurons, and a report in demo/report.html"
	@echo "make lab           JupyterLab on a copy of the tutorials in workshop/ (LAB_ARGS=... is passed on)"
	@echo "make test          everything: sync, notebooks, docs-check, pytest"
	@echo "make setup         .venv with everything that the other targets need"
	@echo "make sync          notebooks clean, modules equal notebooks, README equals nbs/index.ipynb"
	@echo "make notebooks     run all notebooks (N_WORKERS=$(N_WORKERS) at a time)"
	@echo "make docs-check    build the documentation pages; links, warnings, outside resources"
	@echo "make pytest        tests/ (the browser tests need Chromium)"
	@echo "make export        write mmneuron_nb/ from nbs/, clean the notebooks"
	@echo "make readme        write README.md from nbs/index.ipynb"
	@echo "make clean         remove what was made, but workshop/; make distclean: .venv as well"
	@echo
	@echo "PYTHON=$(PYTHON)      which Python makes .venv (3.10 to 3.13)"
	@echo "TORCH_INSTALL='$(TORCH_INSTALL)'      what pip is asked for as PyTorch. On Linux the usual build brings"
	@echo "  several GB of CUDA; for the CPU build add the --index-url that PyTorch's page 'Get Started' shows for it."
	@echo "EXTRAS=$(EXTRAS)      what 'make setup' installs besides; with ',kernels' also Triton (1 GB), which runs the GPU's"
	@echo "  kernels on a CPU to test them: .ci/run does that"

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

$(DEV): $(STAMP).lab
	@echo "Installing what the tests need"
	@$(PIP) --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@

setup: $(DEV)

# -- what people do
demo: $(STAMP).run ## record, classify, report
	@$(VENV)/bin/mmneuron demo
	@echo
	@echo "Go on with 'make lab': it opens the tour in JupyterLab."

lab: $(STAMP).lab ## JupyterLab on a copy of the tutorials, which may be changed and saved
	@$(PY) tools/workshop.py
	@$(VENV)/bin/jupyter lab $$(test "$$(id -u)" != 0 || echo --allow-root) --ServerApp.root_dir=. \
	    --LabApp.default_url=/lab/tree/workshop/01_tour.ipynb $(LAB_ARGS)

test: $(DEV) system ## every stage, also after one has failed; the last line counts
	@$(PY) tools/stages.py $(STAGES)

# -- the stages of the tests: no network, no history of the user's, one thread per worker
$(STAGES): export HF_HUB_OFFLINE = 1
$(STAGES): export OMP_NUM_THREADS = 1
$(STAGES): export MPLCONFIGDIR = $(CURDIR)/$(VENV)/matplotlib
$(STAGES): export IPYTHONDIR = $(CURDIR)/$(VENV)/ipython
$(STAGES): export JUPYTER_PLATFORM_DIRS = 1

sync: $(DEV)
	@$(PY) tools/hygiene.py

notebooks: $(DEV)
	@$(PY) tools/notebooks.py --workers $(N_WORKERS)

docs-check: $(DEV)
	@$(PY) tools/docs.py

pytest: $(DEV)
	@BROWSER_PATH="$${BROWSER_PATH:-$$(sh tools/system.sh --which)}" $(PY) -m pytest tests -q -n $(N_WORKERS) --dist loadfile --timeout=900 --durations=5

system:
	@sh tools/system.sh

# -- what is made from notebooks
export: $(DEV)
	@$(VENV)/bin/nbdev_export
	@$(VENV)/bin/nbdev_clean

readme: $(DEV)
	@$(PY) tools/readme.py

clean:
	@rm -rf _proc _docs build dist demo screenshots .pytest_cache .hypothesis *.egg-info nbs/nbdev.yml
	@find mmneuron_nb nbs tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +
	@find mmneuron_nb nbs tests -name .ipynb_checkpoints -prune -exec rm -rf {} +

distclean: clean
	@rm -rf $(VENV)
