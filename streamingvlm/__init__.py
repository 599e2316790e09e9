"""Watch a video that never ends and say what happens, as it happens."""
