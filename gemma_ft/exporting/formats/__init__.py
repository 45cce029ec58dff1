"""Further formats of an exported checkpoint, written through well-kept libraries."""
