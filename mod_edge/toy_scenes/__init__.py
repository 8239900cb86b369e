"""Synthetic scenes of coloured shapes, drawn and narrated, to train a small model on."""
