# Everything runs in .venv, made on first use from Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow parity lint colab results clean

# The main job: a ViT with SAM and Mixup on real handwritten digits.
demo: $(VENV)/installed
	$(RUN) -m launch.train --config=configs/vit.py:small --workdir=runs/demo

test: $(VENV)/test
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n 2 --dist loadfile -m 'not slow and not parity and not colab'

# Launches, killed and resumed runs, several processes, long compilations.
test-slow: $(VENV)/test
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n 2 --dist loadfile -m 'slow and not parity and not colab'

parity: $(VENV)/parity
	JAX_PLATFORMS=cpu $(RUN) -m pytest -n 2 --dist loadfile -m parity

lint: $(VENV)/test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

colab: $(VENV)/colab
	JAX_PLATFORMS=cpu $(RUN) -m pytest -m colab

# All claims of all papers.
results: $(VENV)/test
	$(RUN) -m launch.reproduce --preset=small

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) -e . -c constraints.txt
	touch $@

$(VENV)/test: $(VENV)/installed
	$(PIP) -e '.[test]' -c constraints.txt
	touch $@

$(VENV)/parity: $(VENV)/test
	$(PIP) -e '.[test,parity]' -c constraints.txt
	touch $@

$(VENV)/colab: $(VENV)/test
	$(PIP) -e '.[test,colab]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
