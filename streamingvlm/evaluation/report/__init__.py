"""One page a run, to look at: what was there, what was said, and what it cost."""
