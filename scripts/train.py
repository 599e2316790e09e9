"""``python scripts/train.py ...`` is ``streamingvlm train ...``, from a checkout."""

from streamingvlm.cli.main import run_verb

if __name__ == "__main__":
    run_verb("train")
