"""Backends in host memory: ONNX Runtime on the CPU, and the PyTorch reference."""
