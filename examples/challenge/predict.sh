#!/usr/bin/env bash
# A challenge submission: installs a zipped model and predicts a folder of images with all its folds, offline.
#
#   nnUNetv2_export_model_to_zip -d 501 -o model.zip -c 3d_fullres -tr nnUNetTrainerDropGen
#   examples/challenge/predict.sh model.zip IMAGES SEGMENTATIONS [further options of nnUNetv2_predict_from_modelfolder]
#
# Writes only to SEGMENTATIONS and a temporary folder. The extractor's weights are part of the model. nnU-Net adds three
# JSON files to SEGMENTATIONS; remove them if the challenge does not accept them.
set -euo pipefail
: "${1:?zipped model}" "${2:?folder of images, named as nnU-Net requires: CASE_0000.nii.gz}" "${3:?output folder}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export nnUNet_raw="$work" nnUNet_preprocessed="$work" nnUNet_results="$work/results"
mkdir "$nnUNet_results"
nnUNetv2_install_pretrained_model_from_zip "$1"

models=("$nnUNet_results"/Dataset*/*__*__*)
if [ "${#models[@]}" -ne 1 ] || [ ! -d "${models[0]}" ]; then
    echo "The zip must contain exactly one configuration of one trainer; it contains: ${models[*]}" >&2
    exit 1
fi
if [[ "${models[0]}" == *__3d_cascade_fullres ]]; then
    echo "A cascade needs the predictions of its first stage: submit 3d_fullres, or predict 3d_lowres first." >&2
    exit 1
fi
folds=("${models[0]}"/fold_*)
nnUNetv2_predict_from_modelfolder -i "$2" -o "$3" -m "${models[0]}" -f "${folds[@]##*/fold_}" "${@:4}"
