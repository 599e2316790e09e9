"""Benchmarks that ask a question about a video while it runs."""
