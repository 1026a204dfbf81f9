"""Domain generalization for nnU-Net. Importing this package imports nothing heavy: the door is `plugin`."""
