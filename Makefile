# Every target does its own set-up in .venv: Python 3.10 or newer, git and make are enough, root is not needed.
# `make` alone lists the targets. Another Python: make test PYTHON=python3.12
.DEFAULT_GOAL := help
.PHONY: help demo test test-rest test-all lab docs readme address

BIN := .venv/bin
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python)
METADATA := settings.ini pyproject.toml setup.py
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(shell test -t 2 || echo --quiet)

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready ## train on drawn cells and write a report to runs/demo (no data, no network)
	rm -rf runs/demo
	$(BIN)/malaria-fastai train sample --arch resnet18 --size 64 --bs 16 --epochs 8 --finetune-epochs 0 --split patient --pretrained no --out runs/demo

test: .venv/ready ## rules, api notebooks, quick tests and lesson 1 (seven to nine minutes)
	@$(BIN)/python tools/run_tests.py quick

test-rest: .venv/ready ## what make test leaves out: slow tests, every lesson, real cells, a browser
	@$(BIN)/python tools/run_tests.py rest

test-all: .venv/ready ## everything
	@$(BIN)/python tools/run_tests.py all

lab: .venv/ready ## open the notebooks in Jupyter
	$(BIN)/jupyter lab --notebook-dir=nbs

docs: .venv/docs ## build the site in _docs (start at _docs/index.html)
	$(BIN)/python tools/make_docs.py

readme: .venv/ready ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py

address: .venv/ready ## write git_url of settings.ini wherever the repository's address is repeated
	$(BIN)/python tools/set_address.py
	$(BIN)/nbdev-export

.venv/ready: $(METADATA)
	@python=; old=; for p in $(CANDIDATES); do \
	    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
	    "$$p" -c 'import venv, ensurepip' 2>/dev/null && { python=$$p; break; } || old=$$p; \
	done; \
	if [ -n "$$python" ]; then :; \
	elif [ -n "$$old" ]; then echo "$$old cannot make environments: install its venv package (Debian, Ubuntu: python3-venv) or name another one: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3" >&2; exit 1; \
	else echo "No Python 3.10 or newer among: $(CANDIDATES). Install one, or name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || { echo "Setting up .venv with $$($$python --version): once, some minutes."; "$$python" -m venv .venv; }
	$(PIP) --editable '.[dev]'
	@touch $@

.venv/docs: .venv/ready
	$(PIP) --editable '.[dev,docs]'
	@touch $@

.venv/weights: .venv/ready
	$(PIP) --editable '.[dev,weights]'
	@touch $@

.PHONY: soak
soak: .venv/ready ## kill a training 200 times, compare each end: results/resume_soak.csv (half an hour or more)
	$(BIN)/python tests/kill_resume.py --kills 200 --out results/resume_soak.csv
	$(BIN)/python tests/fuzz_pictures.py --seconds 600 --out results/fuzz.csv

.PHONY: bench bench-long
bench: .venv/ready ## measure ratios to stock fastai on the cells of MALARIA_NIH_ZIP: bench/README.md (ten minutes, on a quiet machine)
	$(BIN)/python -W ignore bench/bench.py

bench-long: .venv/ready ## the wall time to 95 % of unseen patients' cells (up to two hours)
	$(BIN)/python -W ignore bench/bench.py --long

.PHONY: network
network: .venv/weights ## judge the best recipe in five folds, train it on all cells of MALARIA_NIH_ZIP, and pack it into malaria_fastai/network (four hours)
	OMP_NUM_THREADS=1 $(BIN)/malaria-fastai crossval $(MALARIA_NIH_ZIP) --recipe best --out runs/best_cv --resume
	OMP_NUM_THREADS=1 $(BIN)/python tools/make_network.py $(MALARIA_NIH_ZIP) --judged runs/best_cv --out runs/network

.PHONY: best
best: .venv/weights ## train the best recipe on the cells of MALARIA_NIH_ZIP, or on the full set: runs/best
	$(BIN)/malaria-fastai train $(or $(MALARIA_NIH_ZIP),nih) --recipe best --split fold:0 --out runs/best --resume
