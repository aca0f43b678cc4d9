"""Export of trained models for plain nnU-Net."""
