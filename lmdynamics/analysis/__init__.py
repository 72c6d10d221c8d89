"""Analysis of trajectories: onsets, fits and tests, with intervals."""
