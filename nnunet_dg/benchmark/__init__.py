"""Many trainings as one plan: a Snakemake workflow over nnU-Net's commands and this package's."""
