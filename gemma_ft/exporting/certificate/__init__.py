"""The proof that an export is the model that was trained."""
