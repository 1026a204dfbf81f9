"""Trainers, one file per family. nnU-Net finds them through entry points of the group `nnunetv2.trainers`."""
