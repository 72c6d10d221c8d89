"""What a checkpoint knows and how it is built inside, as tidy frames; and the same along a whole run."""
