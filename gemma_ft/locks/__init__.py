"""One process a folder: a lock of the operating system, and a heartbeat for where that does not reach."""
