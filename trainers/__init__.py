"""Trainers, one file per family. nnU-Net finds them through the entry points `nnunetv2.trainers`."""
