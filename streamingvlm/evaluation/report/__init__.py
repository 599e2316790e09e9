"""An HTML report of a stream: its commentary, its cache and its latency."""
