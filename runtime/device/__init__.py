"""Backends in device memory: TensorRT engines, and ONNX Runtime's CUDA provider."""
