# Everything is made in .venv* and in folders that git ignores; `make help` lists the commands.
# pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) are honoured.

PYTHON ?= python3
ARGS ?=

PY := .venv/bin/python
PY_OPENMMLAB := .venv-openmmlab/bin/python
# Written after the last step of an installation: what failed half-way is gone through again.
ENV := .venv/.complete
ENV_OPENMMLAB := .venv-openmmlab/.complete

# A wheel does not say which torch it was compiled against: the folder's name does. pip's cache
# does not ask either, so it is left out where mmcv is compiled.
WHEELS := wheels/torch-$(shell sed -n 's/^torch==//p' requirements/openmmlab-build.txt)
CORES = $(shell getconf _NPROCESSORS_ONLN)

# Tests are of one thread each; what a file's tests share is made once.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile

DEMO := work_dirs/demo
DEMO_CONFIG := configs/fastfcn8_miniature.py

SLIM := fastfcn8_slim_camvid
CHECKPOINT ?= work_dirs/$(SLIM)_distill/iter_1500.pth
RELEASE := work_dirs/$(SLIM).safetensors

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help env demo demo-page release test test-slow test-openmmlab lint format clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'
	@echo
	@echo 'PYTHON=/path/to/python3 picks the interpreter, ARGS="-k head -x" goes to pytest.'

env: $(ENV) ## make .venv: the OneDL stack, pinned, and this package in place

demo: $(ENV) ## draw a small data set, train FastFCN8 on it, test it, leave a picture
	rm -rf $(DEMO)
	$(PY) tools/make_miniature.py data/miniature
	$(PY) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO) --amp
	$(PY) tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO)/test
	$(PY) tools/show_predictions.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --out $(DEMO)/demo.png --num 6
	@echo
	@sed -n 's/.*"mIoU": \([0-9.]*\).*/\1/p' $(DEMO)/test/*/*.json | \
		awk '{printf "mIoU of FastFCN8 on the validation images of the miniature: %.1f %%\n", $$1}'
	@echo 'image, truth and prediction side by side: $(DEMO)/demo.png'

demo-page: $(ENV) ## a web page, work_dirs/demo/demo.html, of the released network or the demo's; npm fetches the runtime once
	@test -f $(RELEASE) || test -f $(DEMO)/last_checkpoint || \
		{ echo 'error: there is no network yet: run make demo first' >&2; exit 1; }
	if test -f $(RELEASE); then set -- configs/$(SLIM).py $(RELEASE); \
		else set -- $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)"; fi; \
	$(PY) tools/export.py "$$@" --format html --out $(DEMO)/demo.html

release: $(ENV) ## of a trained FastFCN8 slim, CHECKPOINT=FILE: weights to hand on, tested, with a model card
	$(PY) tools/test.py configs/$(SLIM).py $(CHECKPOINT) --work-dir work_dirs/release --report work_dirs/release
	$(PY) tools/convert_weights.py $(CHECKPOINT) $(RELEASE) --config configs/$(SLIM).py \
		--card work_dirs/release/report.json --overwrite

test: $(ENV) ## run the tests
	$(PY) -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-slow: $(ENV) ## run the tests that take minutes: killed runs, full disks, damaged files
	$(PY) -m pytest -m slow -rA -s $(ARGS)

test-openmmlab: $(ENV_OPENMMLAB) ## the same tests on the OpenMMLab stack, built from source in .venv-openmmlab
	$(PY_OPENMMLAB) -m pytest $(SIDE_BY_SIDE) $(ARGS)

lint: $(ENV) ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: $(ENV) ## put the style right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove environments, caches and the demo; data, other runs and compiled wheels stay
	rm -rf .venv .venv-openmmlab build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache $(DEMO)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call check_python,CONDITION,WORDS): one line instead of what pip would say much later.
define check_python
@$(PYTHON) -c 'import sys; sys.exit(not $(1))' 2>/dev/null || \
	{ echo 'error: $(PYTHON) is not Python $(2): name one that is, as in make PYTHON=/path/to/python3' >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo 'error: $(PYTHON) cannot make virtual environments: install its venv module (Debian: python3-venv)' >&2; exit 1; }
endef

# $(call make_venv,DIR): keeps a sound environment, so that an interrupted installation resumes.
define make_venv
rm -f $(1)/.complete
$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
endef

# $(call finish,DIR): OpenCV's default wheel wants libGL, which a bare machine lacks; the headless
# one is the same module without windows.
define finish
$(1)/bin/python -c 'import cv2' 2>/dev/null || $(1)/bin/python -m pip install --force-reinstall --no-deps \
	"$$(sed -n 's/^opencv-python==/opencv-python-headless==/p' requirements/onedl.txt)"
$(1)/bin/python -m pip install --no-deps --no-build-isolation -e .
touch $(1)/.complete
endef

$(ENV): requirements/onedl.txt setup.py pyproject.toml
	$(call check_python,0x30a0000 <= sys.hexversion,3.10 or later)
	$(call make_venv,.venv)
	$(PY) -m pip install -r requirements/onedl.txt
	$(call finish,.venv)

$(ENV_OPENMMLAB): requirements/openmmlab-build.txt requirements/openmmlab.txt setup.py pyproject.toml
	$(call check_python,0x30a0000 <= sys.hexversion < 0x30d0000,3.10 to 3.12 (the OpenMMLab stack))
	@command -v $${CXX:-c++} >/dev/null || { echo 'error: no C++ compiler: mmcv is compiled from source (Debian: g++)' >&2; exit 1; }
	$(call make_venv,.venv-openmmlab)
	$(PY_OPENMMLAB) -m pip install -r requirements/openmmlab-build.txt
	@ls $(WHEELS)/mmcv-*.whl >/dev/null 2>&1 || echo 'Compiling mmcv: about 13 minutes on two cores.'
	CFLAGS="-O1 -g0" MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=$(CORES) $(PY_OPENMMLAB) -m pip wheel --no-cache-dir --no-deps \
		--no-build-isolation --find-links $(WHEELS) --wheel-dir $(WHEELS) mmcv==2.1.0
	$(PY_OPENMMLAB) -m pip install --find-links $(WHEELS) -r requirements/openmmlab.txt
	$(call finish,.venv-openmmlab)
