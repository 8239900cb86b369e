"""Data sets of videos with timed conversations, and measures of what is said over them."""
