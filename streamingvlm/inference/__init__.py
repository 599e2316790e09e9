"""A stream as it runs: the session, its statistics and the files it writes."""
