"""What users do instead of the ladder, measured alike: PyTorch loops, and other engines on the same model."""

import common as common  # from here on Ctrl-C ends in one line
