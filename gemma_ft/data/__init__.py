"""The data room: rows become conversations, conversations become token ids with a loss mask."""
