"""Benchmarks in which a language model says which of two commentaries is better."""
