"""The run: TRL's trainer, checkpoints, progress and tracking."""
