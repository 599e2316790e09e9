"""How fast streams run on a machine, beside what the machine could do: scripts/bench.py is its command."""
