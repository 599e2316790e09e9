"""Pitch: a match of any length, watched free-running and scored exactly, and the paper's ablations on it."""
