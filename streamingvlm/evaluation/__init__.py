"""Benchmarks: each runs through the session that users run."""
