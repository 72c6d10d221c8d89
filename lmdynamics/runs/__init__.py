"""Runs and checkpoints: how they are opened, trained and stored on disk."""
