"""What a training run leaves on disk: checkpoints, its record, its lock and its log."""
