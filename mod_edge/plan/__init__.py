"""Everything derived from a config alone: signatures, targets, layouts, the KV window, its size."""
