#!/usr/bin/env bash
# What only a GPU can show of correctness, on one GPU in at most six minutes; one row as each check ends, so that a cut
# costs only what is left. The checks are tests/gpu, each with a time limit of its own.
#
#   benchmarks/gpu_correct.sh          on the GPU
#   benchmarks/gpu_correct.sh cpu      the same test bodies on the CPU, to try the script itself
#
# PYTHON names the interpreter (default: .venv/bin/python where it works, else python3), which has to have torch and
# NumPy; torchvision is not needed. What else is missing comes from a folder `wheels` here (WHEELS names another one), so
# that no network is needed. To fill it, on a machine with one, for the Python of the GPU's machine:
#
#   pip download --dest wheels --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 \
#       pydantic click rich pyyaml safetensors pytest
#
# Rows go to stdout and, with OUT set, to $OUT/gpu_correct.txt; beside it, gpu_correct.log has the whole output of each
# check.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
on=${1:-cuda}
scratch=$(mktemp -d)
out=${OUT:-$scratch}
end=$((SECONDS + 360))
failed=0

python=${PYTHON:-}
if [[ -z $python ]]; then
    if .venv/bin/python -c 'import torch' 2>/dev/null; then python=.venv/bin/python; else python=python3; fi
fi
modules=(pydantic pydantic_core annotated_types typing_inspection click rich yaml safetensors pytest)
missing=$("$python" -c "
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))" "${modules[@]}")
if [[ -n $missing ]]; then
    if [[ ! -d ${WHEELS:-wheels} ]]; then
        echo "missing: $missing; bring a folder wheels, see the head of this script" >&2
        exit 2
    fi
    "$python" -m pip install --quiet --no-index --no-deps --target "$scratch/packages" "${WHEELS:-wheels}"/*.whl || exit 2
fi
export PYTHONPATH=$PWD:$scratch/packages${PYTHONPATH:+:$PYTHONPATH}

row() { printf '%-44s %-8s %4s s  %s\n' "$@" | tee -a "$out/gpu_correct.txt"; }

check() { # NAME SECONDS WHAT-OF-PYTEST …
    local name=$1 limit=$2 begun=$SECONDS left=$((end - SECONDS)) code said log=$scratch/check.txt
    shift 2
    if ((left <= 5)); then
        row "$name" "not run" 0 "no time was left"
        failed=1
        return
    fi
    timeout --kill-after=5 "$((limit < left ? limit : left))" "$python" -m pytest -q -x -p no:cacheprovider \
        -k "$on" "$@" >"$log" 2>&1
    code=$?
    { echo "==== $name"; cat "$log"; } >>"$out/gpu_correct.log"
    said=$(tail -n 1 "$log")
    case $code in
        0) row "$name" ok $((SECONDS - begun)) "$said" ;;
        124 | 137) row "$name" cut $((SECONDS - begun)) "$said" ;;
        *)
            row "$name" FAILED $((SECONDS - begun)) "$said"
            grep -E '^E  ' "$log" | head -n 5
            ;;
    esac
    ((code == 0)) || failed=1
}

"$python" - "$on" <<'PYTHON' | tee -a "$out/gpu_correct.txt" || exit 2
import platform, sys
import torch
from dist_train.checkpoint.provenance import gpu_libraries
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no GPU")
device = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "CPU"
print(f"{device}, torch {torch.__version__}, Python {platform.python_version()}, {gpu_libraries()}")
PYTHON

t=tests/gpu
exact=$t/test_exactness.py
check "one rank: again, in pieces" 90 $exact::test_again_and_in_pieces
check "a step waits for nothing; page-locked memory" 30 $t/test_waits.py $t/test_memory.py
begun=$SECONDS
GPU_TESTS_BACKEND=$({ timeout 60 "$python" -m tests.gpu.probe || echo gloo; } 2>/dev/null | head -n 1)
export GPU_TESTS_BACKEND
row "several ranks on one device" ok $((SECONDS - begun)) "by $GPU_TESTS_BACKEND"
check "1, 2, 3 ranks: equal" 90 $exact::test_one_two_and_three_ranks
check "streams that are late" 40 $exact::test_neither_stream_may_be_late
check "launcher: INT, TERM to all, KILL, restart" 90 $t/test_launched.py::test_stopped_killed_and_started_again_it_ends_in_the_same_bits
check "a hang, and no memory" 60 $t/test_launched.py::test_a_kernel_that_does_not_end_is_a_hang \
    $t/test_launched.py::test_memory_that_the_device_does_not_have_is_exit_code_12
echo "outputs: $out/gpu_correct.txt, gpu_correct.log"
exit $failed
