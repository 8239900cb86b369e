"""Training: videos with timed narrations in, a checkpoint out."""
