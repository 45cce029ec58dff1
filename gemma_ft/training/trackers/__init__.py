"""One module a tracker: where a run's metrics go beside metrics.jsonl."""
