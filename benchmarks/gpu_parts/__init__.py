"""What `benchmarks/gpu.py` measures, each part in a process of its own."""
