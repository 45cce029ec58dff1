"""Gemma's token contract: ids, loss mask, and the checks that it is kept."""
