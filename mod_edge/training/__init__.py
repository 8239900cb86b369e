"""Data, training and what it needs: videos with timed narrations in, a checkpoint out."""
