"""Watch a file: ``python examples/file.py match.mp4``; without a name, the embedded match."""

import sys
from pathlib import Path

import streamingvlm
from streamingvlm import StreamingSession

MATCH = Path(streamingvlm.__file__).parent / "assets" / "pitch" / "match.mp4"


def main(path: str | Path = MATCH):
    """Print a line of commentary for each second that is not silent, then a summary."""
    with StreamingSession.from_pretrained("pitch") as session:
        for line in session.stream(path):
            if not line.is_silent:
                print(line)
        print(session.stats.summary())


if __name__ == "__main__":
    main(*sys.argv[1:])
