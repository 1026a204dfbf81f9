"""Training methods with nnU-Net: the trainer, the train step, settings in the plans, and checkpoints."""
