"""Evaluates a model on a data set of streams, teacher-forced and free-running."""
