"""What this machine can run and what is missing, asked without loading a model."""
