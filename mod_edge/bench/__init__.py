"""Measure a bundle on this machine: every part of a stream, beside what the hardware allows."""
