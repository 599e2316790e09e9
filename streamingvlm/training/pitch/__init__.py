"""The recipe of the embedded model: a tower that learns to see, then a language model that learns to speak."""
