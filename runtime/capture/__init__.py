"""Frames at the rate of the model, from video files, cameras and streams."""
