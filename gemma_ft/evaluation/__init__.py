"""What a model says, before and after."""
