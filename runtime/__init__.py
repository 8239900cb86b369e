"""A bundle at work: video in, words out, over a rolling KV cache."""
