"""From checkpoint to model: loading, precision, quantization, adapters."""
