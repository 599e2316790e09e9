"""``python scripts/prepare_data.py ...`` is ``streamingvlm prepare ...``, from a checkout."""

from streamingvlm.cli.main import run_verb

if __name__ == "__main__":
    run_verb("prepare")
