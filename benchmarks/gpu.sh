#!/usr/bin/env bash
# What only a GPU shows, in at most eight minutes. Each step has its own time limit, and its output is in a file when it
# ends: what was measured before an interruption is kept. Costs may end at their limit; any other step then has failed.
#
#   benchmarks/gpu.sh [FOLDER]     on a machine with a GPU; the files are written to FOLDER, by default gpu_results
#   benchmarks/gpu.sh --rehearse   the same steps, tiny and with few trainers, on the CPU if there is no GPU
#
# Steps are compiled of four trainers only: compiling all takes longer than eight minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
failed=0

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout --kill-after=2 "$limit" "$@" > "$folder/$name.md" 2> "$folder/$name.log" &
    trap 'kill $!; exit 130' INT TERM  # timeout has a process group of its own, which Ctrl-C does not reach
    wait $! || status=$?
    cat "$folder/$name.md"
    if [ $status = 0 ]; then
        echo "$name: $((SECONDS - start)) s"
    elif [ -z "$rehearsal" ] && [[ $name =~ ^(costs|compiled)$ ]] && [ $((SECONDS - start)) -ge "$limit" ]; then
        echo "$name: ended at its limit of $limit s"
    else
        tail -n 30 "$folder/$name.log" >&2
        echo "$name: exit status $status after $((SECONDS - start)) s"
        failed=1
    fi
}

case ${1:-} in
    --rehearse)
        rehearsal=yes folder=$(mktemp -d)
        trap 'rm -rf "$folder"' EXIT
        cd "$here"
        step environment 60 nnunet-dg doctor
        step costs 300 python gpu.py --rehearse nnUNetTrainerMixStyle nnUNetTrainerDropGen_MIND
        step compiled 300 python gpu.py --compile --rehearse nnUNetTrainerDropGen_MIND
        step parity 120 python gpu_parity.py --rehearse nnUNetTrainerDropGen_MIND
        step prediction 300 python whole_prediction.py --volume 16 --patch 16 --rounds 1
        step trainings 300 python gpu_trainings.py --rehearse
        exit $failed
        ;;
    -*)
        sed -n 's/^#   //p' "$0"
        exit 2
        ;;
esac

rehearsal='' folder=$(realpath -m "${1:-gpu_results}")
if ! nvidia-smi > /dev/null; then
    echo "There is no GPU. Try benchmarks/gpu.sh --rehearse." >&2
    exit 1
fi
mkdir -p "$folder"
cd "$here"  # not the repository, whose nnunet_dg may be another one than the installed one
step environment 20 nnunet-dg doctor
step costs 130 python gpu.py --rounds 5
step compiled 170 python gpu.py --compile --rounds 5 --group 2 \
    nnUNetTrainerDropGen_MIND nnUNetTrainerSgCG nnUNetTrainerTinyMIG nnUNetTrainerDropGen
step parity 40 python gpu_parity.py
step prediction 30 python whole_prediction.py --device cuda --volume 192 --patch 128 --rounds 2
step trainings 75 python gpu_trainings.py
exit $failed
