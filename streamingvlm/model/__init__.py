"""The seam to Hugging Face: loading a checkpoint, its vision path, and the streaming attention."""
