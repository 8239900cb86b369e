"""VideoLLM-MoD in plain PyTorch, and the checkpoints that hold its weights."""
