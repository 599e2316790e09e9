"""Benchmarks of commentary and answers, run through the session that users run."""
