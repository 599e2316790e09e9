"""``python scripts/serve.py ...`` is ``streamingvlm serve ...``, from a checkout."""

from streamingvlm.cli.main import run_verb

if __name__ == "__main__":
    run_verb("serve")
