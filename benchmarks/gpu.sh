#!/usr/bin/env bash
# What only a GPU shows, on nnU-Net's default network: cost, memory and synchronizations of a training step of every
# trainer, and the same for the main ones with torch.compile. About ten minutes on an H100.
#
#   benchmarks/gpu.sh --rehearse   tiny, with two trainers, without torch.compile, on the CPU if there is no GPU
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" = --rehearse ]; then
    exec python gpu.py --rehearse nnUNetTrainerMixStyle nnUNetTrainerDropGen_MIND
fi

python gpu.py "$@"
python gpu.py --compile nnUNetTrainerDropGen nnUNetTrainerDropGen_MIND nnUNetTrainerSgCG nnUNetTrainerTinyMIG \
    nnUNetTrainerMixStyle nnUNetTrainerRSC
