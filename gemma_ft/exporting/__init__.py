"""From what was trained to a checkpoint folder that loads anywhere."""
