"""Benchmarks of questions about a running video."""
