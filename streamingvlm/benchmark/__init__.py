"""Benchmarks: the speed of streaming next to the machine's roofline, and the throughput of training."""
