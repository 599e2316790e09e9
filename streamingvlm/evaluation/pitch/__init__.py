"""Matches of Pitch, streamed through the session and scored exactly, and the ablation tables made from them."""
