"""Supervised fine-tuning on overlapping chunks, with the turns and positions that inference uses."""
