"""Patch-size curricula as external trainers of nnU-Net.

nnU-Net finds them when `nnUNet_extTrainer` points at the folder above this package.
"""
