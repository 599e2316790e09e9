"""Watch many streams with one model in one engine: ``python examples/many_streams.py``.

The engine batches the work of all streams; each has its own cache, and its text is that of a stream alone.
"""

from itertools import islice

from streamingvlm import StreamingSession, load_model
from streamingvlm.inference.engine import Engine
from streamingvlm.pitch import Match, render


def main(num_streams: int = 4, num_seconds: int = 3):
    """Print what each stream says of each second of its own match."""
    model = load_model("pitch")
    with Engine(model, num_slots=num_streams) as engine:
        sessions = [StreamingSession(model, engine=engine) for _ in range(num_streams)]
        matches = [Match(seed).seconds() for seed in range(num_streams)]
        for seconds in islice(zip(*matches, strict=True), num_seconds):
            turns = [session.submit(render(second)) for session, second in zip(sessions, seconds, strict=True)]
            for number, turn in enumerate(turns):
                print(f"stream {number}: {turn.result()}")


if __name__ == "__main__":
    main()
