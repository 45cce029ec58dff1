"""The exported folder: weights and all that goes with them."""
