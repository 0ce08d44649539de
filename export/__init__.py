"""From a model to an ONNX file: torchvision's models, random weights without PyTorch, quantization, training."""

import common as common  # from here on Ctrl-C ends in one line
