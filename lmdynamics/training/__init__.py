"""From a recipe to a folder of checkpoints: masking, batches, the loop."""
