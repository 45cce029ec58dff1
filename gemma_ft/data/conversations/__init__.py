"""Rows of every shape as conversations or plain texts."""
