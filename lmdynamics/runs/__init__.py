"""Runs and checkpoints: what everything downstream sees, and how they lie on the disk."""
