"""The benchmarks of ``streamingvlm evaluate``, a file each."""
