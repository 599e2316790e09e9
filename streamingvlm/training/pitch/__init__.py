"""Training of the embedded model on Pitch: first the vision tower, then the language model."""
