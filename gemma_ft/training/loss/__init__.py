"""From hidden states to the loss over Gemma's 256,000 words, without its logits ever existing whole."""
