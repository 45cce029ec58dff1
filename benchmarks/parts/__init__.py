"""What the benchmarks share: measured processes, sides in turns, results, plots."""
