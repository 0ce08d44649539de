"""From a model to an ONNX file: torchvision's models, random weights without PyTorch, quantization, training."""
