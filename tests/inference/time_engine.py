"""Time one engine of several streams against as many sessions in turn, side by side, on the bundled match:

    OMP_NUM_THREADS=1 python tests/inference/time_engine.py --streams 4 --rounds 60

Each round takes in one second of every stream, first the one way and then the other, so that both meet the same
machine. The words must be the same; the ratio is that of the seconds a round takes, the median of all rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.checkpoint import PACKAGED
from streamingvlm.model.loading import load_model
from streamingvlm.video.reader import open_video

# Turns before the clock starts: the windows of the embedded model are full by then.
_WARM_UP_TURNS = 20


def time_both(num_streams: int, num_rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: of sessions in turn, and of the engine."""
    model = load_model("pitch", device="cpu")
    with open_video(PACKAGED["pitch"] / "match.mp4", fps=2.0, chunk_s=1.0) as reader:
        pictures = [second.frames for second, _ in zip(reader, range(120), strict=False)]
    alone = [StreamingSession(model) for _ in range(num_streams)]
    engine = Engine(model, num_slots=num_streams)
    together = [engine.open() for _ in range(num_streams)]
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(_WARM_UP_TURNS + num_rounds):
        seen = [pictures[(7 * place + turn) % len(pictures)] for place in range(num_streams)]
        one = _timed(lambda seen=seen: [s.step(p).text for s, p in zip(alone, seen, strict=True)], taken[0])
        other = _timed(lambda seen=seen: _in_one(engine, together, seen), taken[1])
        assert one == other, f"turn {turn}: {one} in turn, {other} in one engine"
    return taken[0][_WARM_UP_TURNS:], taken[1][_WARM_UP_TURNS:]


def _in_one(engine: Engine, sessions: list[StreamingSession], seen: list[torch.Tensor]) -> list[str]:
    futures = [session.submit(picture) for session, picture in zip(sessions, seen, strict=True)]
    engine.run()
    return [future.result().text for future in futures]


def _timed(work: Callable[[], list[str]], taken: list[float]) -> list[str]:
    started = time.perf_counter()
    result = work()
    taken.append(time.perf_counter() - started)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    in_turn, in_one = time_both(options.streams, options.rounds)
    ratio = statistics.median(a / b for a, b in zip(in_turn, in_one, strict=True))
    per_second = options.streams / statistics.median(in_one)
    print(f"{ratio:.2f} times the throughput of sessions in turn: {per_second:.0f} seconds of stream a second")
    print(
        f"medians a round: {statistics.median(in_turn) * 1e3:.0f} ms in turn, {statistics.median(in_one) * 1e3:.0f} ms"
    )
