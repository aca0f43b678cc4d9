"""The curricula as external trainers of nnU-Net."""
