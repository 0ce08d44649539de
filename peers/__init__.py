"""What users do instead of the ladder, measured alike: PyTorch loops, and other engines on the same model."""
