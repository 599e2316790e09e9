"""``python scripts/bench.py ...`` is ``streamingvlm bench ...``, from a checkout."""

from streamingvlm.cli.main import run_verb

if __name__ == "__main__":
    run_verb("bench")
