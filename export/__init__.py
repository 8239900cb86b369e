"""From a checkpoint to the ONNX graphs and engines of a bundle."""
