"""Trainers of methods: the port between a method and nnU-Net, settings in the plans, checkpoints."""
