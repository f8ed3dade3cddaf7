#!/usr/bin/env bash
# How fast one GPU trains, in at most four minutes; one row as each check ends, so that a cut costs only what is left.
#
#   benchmarks/gpu_speed.sh          on the GPU
#   benchmarks/gpu_speed.sh cpu      tiny sizes on the CPU, to try the script itself: the figures say nothing
#
# ResNet-50 on synthetic images of 224 pixels, bf16, channels_last: `exact` true, `exact` false, and a script by hand with
# DistributedDataParallel. The recipe of configs/cifar10_94.yaml on synthetic images of CIFAR's size. A GPT of GPT-2's
# size on tokens at random. PYTHON, WHEELS and OUT are those of benchmarks/gpu_correct.sh; torchvision is needed for
# ResNet-50 alone. Rows go to stdout and, with OUT set, to $OUT/gpu_speed.txt; gpu_speed.log beside it has the rest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
on=${1:-cuda}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch/tokens"' EXIT
out=${OUT:-$scratch}
patience=1
if [[ $on == cpu ]]; then patience=10; fi
end=$((SECONDS + 240 * patience))
failed=0

python=${PYTHON:-}
if [[ -z $python ]]; then
    if .venv/bin/python -c 'import torch' 2>/dev/null; then python=.venv/bin/python; else python=python3; fi
fi
if ! "$python" -c 'import pydantic, yaml, safetensors' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$scratch/packages" "${WHEELS:-wheels}"/*.whl || exit 2
fi
export PYTHONPATH=$PWD:$scratch/packages${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1

row() { # NAME SECONDS WORDS-OF-gpu_speed.py …
    local name=$1 limit=$(($2 * patience)) begun=$SECONDS left=$((end - SECONDS)) code said=
    shift 2
    if ((left <= 5)); then
        said="not run: no time was left"
        failed=1
    else
        said=$(timeout --kill-after=5 "$((limit < left ? limit : left))" "$python" -m benchmarks.gpu_speed "$@" 2>"$scratch/err")
        code=$?
        { echo "==== $name"; cat "$scratch/err"; } >>"$out/gpu_speed.log"
        said=$(tail -n 1 <<<"$said")
        if ((code == 124 || code == 137)); then said="cut after $limit s"; fi
        if ((code != 0)); then
            failed=1
            said="FAILED ${said} $(tail -n 1 "$scratch/err")"
        fi
    fi
    printf '%-34s %4s s  %s\n' "$name" $((SECONDS - begun)) "$said" | tee -a "$out/gpu_speed.txt"
}

"$python" - "$on" <<'PYTHON' | tee -a "$out/gpu_speed.txt" || exit 2
import platform, sys
import torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no GPU")
device = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "CPU"
print(f"{device}, torch {torch.__version__}, Python {platform.python_version()}")
PYTHON

steps=(--steps 30)
side=224 batch=256 images=1281167 samples=50000 recipe=() gpt=(batch.global_size=32 batch.microbatches=2)
sizes=(model.layers=12 model.heads=12 model.width=768 data.context=1024)
if [[ $on == cpu ]]; then
    export CUDA_VISIBLE_DEVICES=
    steps=(--warm-up 1 --steps 1)
    side=32 batch=4 images=64 samples=64
    recipe=(batch.global_size=8 "model.args={widths: [8, 8, 8]}")
    gpt=(batch.global_size=4 batch.microbatches=2)
    sizes=(model.layers=1 model.heads=2 model.width=32 data.context=32)
fi
resnet=(configs/imagenet_resnet50.yaml "data={name: synthetic, shape: [3, $side, $side], classes: 1000, size: $images}"
    "augment=[]" batch.global_size=$batch batch.microbatches=1 loader.workers=4)
row "ResNet-50, exact: true" 60 ours "${resnet[@]}" "${steps[@]}"
row "ResNet-50, exact: false" 50 ours "${resnet[@]}" exact=false "${steps[@]}"
row "ResNet-50 by hand, DDP" 50 plain --images "$side" --batch "$batch" "${steps[@]}"
row "CIFAR-10 recipe" 50 ours configs/cifar10_94.yaml "data={name: synthetic, shape: [3, 32, 32], size: $samples}" \
    "${recipe[@]}" "${steps[@]}"
row "GPT of GPT-2's size" 60 ours configs/char_lm.yaml --tokens "$scratch/tokens" \
    "data={name: tokens, root: $scratch/tokens, vocabulary: 50304}" "${sizes[@]}" "${gpt[@]}" train.precision=bf16 \
    "${steps[@]}"
echo "outputs: $out/gpu_speed.txt, gpu_speed.log"
exit $failed
