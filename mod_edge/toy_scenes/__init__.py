"""Synthetic videos of coloured shapes with narrations, to train a small model on."""
