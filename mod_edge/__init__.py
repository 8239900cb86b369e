"""Deploy VideoLLM-MoD checkpoints to edge devices: export, compile, verify and stream."""

__version__ = "0.1.0"
