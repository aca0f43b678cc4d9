"""Patch-size curricula as external trainers of nnU-Net.

Installed without the workflow, this is the package `patch_curricula`. In a clone, nnU-Net finds the
arms when `nnUNet_extTrainer` points at the folder above.
"""
