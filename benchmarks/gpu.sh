#!/usr/bin/env bash
# What only a GPU shows, in at most eight minutes. Each step has its own time limit, and what it prints is in a file as soon
# as it is printed: what was measured before an interruption is kept.
#
#   benchmarks/gpu.sh [FOLDER]     on a machine with a GPU; the files are written to FOLDER, by default gpu_results
#   benchmarks/gpu.sh --rehearse   tiny, with few trainers and without torch.compile, on the CPU if there is no GPU
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m -- "${1:-gpu_results}")
cd "$here"  # not the repository, whose nnunet_dg may be another one than the installed one
failed=0

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout --kill-after=5 "$limit" "$@" > "$folder/$name.md" 2> "$folder/$name.log" || status=$?
    case $status in
        0) echo "$name: $((SECONDS - start)) s" ;;
        124 | 137) echo "$name: ended at its limit of $limit s" ;;
        *) echo "$name: exit status $status; see $folder/$name.log"; failed=1 ;;
    esac
    cat "$folder/$name.md"
}

if [ "${1:-}" = --rehearse ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    step costs 300 python gpu.py --rehearse nnUNetTrainerMixStyle nnUNetTrainerDropGen_MIND
    step parity 120 python gpu_parity.py --rehearse nnUNetTrainerDropGen_MIND
    step trainings 300 python gpu_trainings.py --rehearse
    exit $failed
fi

mkdir -p "$folder"
nvidia-smi > /dev/null
step environment 20 nnunet-dg doctor
step costs 130 python gpu.py --rounds 5
step compiled 170 python gpu.py --compile --rounds 5 --group 2 \
    nnUNetTrainerDropGen_MIND nnUNetTrainerSgCG nnUNetTrainerTinyMIG nnUNetTrainerDropGen
step parity 40 python gpu_parity.py
step prediction 30 python whole_prediction.py --device cuda --volume 192 --patch 128 --rounds 2
step trainings 90 python gpu_trainings.py
exit $failed
