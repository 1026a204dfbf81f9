"""Domain generalization for nnU-Net. Importing this package imports nothing heavy; nnU-Net enters through `plugin`."""
