"""Training: overlapped chunks out of the same turns and positions that a stream is made of."""
