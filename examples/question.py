"""Ask about a stream while it runs: ``python examples/question.py``.

The answer comes from a fork of the cache: the commentary goes on as if nobody had asked. The embedded model was trained
on commentary only, so its answers are commentary, too.
"""

from itertools import islice

from streamingvlm import StreamingSession
from streamingvlm.pitch import Match, render

QUESTION = "Who has the ball?"


def main(num_seconds: int = 6):
    """Print the commentary, and an answer after every third second."""
    with StreamingSession.from_pretrained("pitch", query="Say what happens.") as session:
        for number, second in enumerate(islice(Match(0).seconds(), num_seconds), start=1):
            print(session.step(render(second)))  # uint8 [frames, 3, H, W]: a second of video
            if number % 3 == 0:
                print(f"{QUESTION} {session.ask(QUESTION)}")


if __name__ == "__main__":
    main()
