"""The streaming merge: tensors read and written by offset, updates applied a block of rows at a time."""
