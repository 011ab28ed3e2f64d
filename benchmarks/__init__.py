"""What is measured, and what takes too long for a test: `python -m benchmarks.NAME`."""
