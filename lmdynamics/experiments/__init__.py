"""Plans and ladders: train, trace and compare runs."""
