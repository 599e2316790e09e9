"""Who is evaluated, and the clips that all of them are shown."""
