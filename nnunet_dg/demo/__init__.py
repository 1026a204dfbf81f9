"""The demo: nnU-Net's own commands on a dataset with a small domain shift, and its effect on two trainers."""
