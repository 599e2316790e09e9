"""The adapter to Hugging Face models: loading a checkpoint, its vision path, and the streaming attention."""
