"""Measurements of checkpoints as tidy frames, and their traces over a run."""
