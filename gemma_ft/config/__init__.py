"""The configuration of a run: its keys, its files, and what cannot work."""
