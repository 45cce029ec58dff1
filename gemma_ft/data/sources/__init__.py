"""Rows as they stand in files, hub repositories and installed packages, each with its place."""
