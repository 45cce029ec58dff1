"""Parts of step.py: cases, their models and rows, and how each side is driven."""
