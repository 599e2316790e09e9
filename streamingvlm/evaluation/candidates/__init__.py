"""The systems under evaluation, a file each, and the clips that all of them are shown."""
