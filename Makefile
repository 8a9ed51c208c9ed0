# Everything runs in .venv, made on first use from Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := $(VENV)/bin/python
# Peers whose own dependencies ask for a torchvision that no torch for CPUs loads.
ALONE := breaching open_clip_torch torchattacks wilds ogb outdated littleutils pytz
# Two processes, each with a file at a time.
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile

.PHONY: demo test test-slow test-all test-gpu parity lint colab docs results clean

# The main job: a ViT with SAM and Mixup on real handwritten digits.
demo: $(VENV)/installed
	$(RUN) -m launch.train --config=configs/vit.py:small --workdir=runs/demo

test: $(VENV)/test
	JAX_PLATFORMS=cpu $(PYTEST) \
	  -m 'not slow and not dear and not parity and not colab'

# Launches, killed and resumed runs, several processes.
test-slow: $(VENV)/test
	JAX_PLATFORMS=cpu $(PYTEST) -m 'slow and not parity and not colab'

parity: $(VENV)/parity
	JAX_PLATFORMS=cpu $(PYTEST) -m parity

# These three and the dear ones, in one session.
test-all: $(VENV)/parity
	JAX_PLATFORMS=cpu $(PYTEST) -m 'not colab'

# On a machine with one NVIDIA GPU or more, which the processes share.
test-gpu: $(VENV)/cuda
	JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false \
	  JAX_DEFAULT_MATMUL_PRECISION=highest \
	  $(PYTEST) -m 'not slow and not parity and not colab'

lint: $(VENV)/test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(RUN) -m mypy

colab: $(VENV)/colab
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n 2 --maxschedchunk=1 tests/test_colabs.py

# The site in build/site; a warning is an error.
docs: $(VENV)/docs
	$(RUN) -m docs.pages build/pages
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

# All claims of all papers.
results: $(VENV)/test
	$(RUN) -m launch.reproduce --preset=small

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip -c constraints.txt
	$(PIP) -e . -c constraints.txt
	touch $@

$(VENV)/test: $(VENV)/installed
	$(PIP) -e '.[test]' -c constraints.txt
	touch $@

$(VENV)/parity: $(VENV)/test
	$(PIP) -e '.[test,parity]' -c constraints.txt
	$(PIP) --no-deps $(ALONE) -c constraints.txt
	touch $@

$(VENV)/cuda: $(VENV)/test
	$(PIP) -e '.[test,cuda]' -c constraints.txt
	touch $@

$(VENV)/colab: $(VENV)/test
	$(PIP) -e '.[test,colab]' -c constraints.txt
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(PIP) -e '.[docs]' -c constraints.txt
	touch $@

# All but cuda, at once.
$(VENV)/everything: $(VENV)/installed
	$(PIP) -e '.[test,parity,colab,docs]' -c constraints.txt
	$(PIP) --no-deps $(ALONE) -c constraints.txt
	touch $(VENV)/test $(VENV)/parity $(VENV)/colab $(VENV)/docs $@

clean:
	rm -rf $(VENV) runs build *.egg-info
