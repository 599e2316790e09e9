"""``python -m streamingvlm`` is the command ``streamingvlm``."""

from streamingvlm.cli.main import main

if __name__ == "__main__":
    main()
