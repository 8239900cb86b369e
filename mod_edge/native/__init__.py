"""ONNX Runtime, TensorRT and CUDA: imported here and nowhere else, and only inside functions."""
