"""Runners in device memory: TensorRT engines, and the CUDA provider of ONNX Runtime."""
