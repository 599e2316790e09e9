"""Benchmarks in which a language model chooses the better of two commentaries."""
