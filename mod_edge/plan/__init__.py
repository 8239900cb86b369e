"""What follows from a config alone: signatures, targets, layouts, the KV window and its size."""
