"""What a trajectory of numbers says: when something appeared, and how sure we are."""
