"""``python scripts/evaluate.py ...`` is ``streamingvlm evaluate ...``, from a checkout."""

from streamingvlm.cli.main import run_verb

if __name__ == "__main__":
    run_verb("evaluate")
