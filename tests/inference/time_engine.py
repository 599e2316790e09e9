"""Time one engine of several streams against as many sessions in turn, side by side, on the bundled match:

    OMP_NUM_THREADS=1 python tests/inference/time_engine.py --streams 4 --rounds 60 --turns 1

Each round takes in some turns of every stream, first the one way and then the other, so that both meet the same
machine. In a round of one turn all streams keep step; in a longer one each hands over its next turn as soon as one is
done, as files and cameras do. The words must be the same; the ratio is that of the seconds a round takes, the median of
all rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from streamingvlm.inference.engine import Engine
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.checkpoint import EMBEDDED
from streamingvlm.model.loading import load_model
from streamingvlm.video.reader import open_video

# Turns before the clock starts: the windows of the embedded model are full by then.
_WARM_UP_TURNS = 20


def time_both(
    num_streams: int, num_rounds: int, *, num_turns: int = 1, num_in_engine: int = 1
) -> tuple[list[float], list[float]]:
    """Seconds of each round of ``num_turns`` turns of every stream: of sessions in turn, and of the engine.

    num_in_engine: the most turns of a stream that the engine has at once.
    """
    model = load_model("pitch", device="cpu")
    with open_video(EMBEDDED["pitch"] / "match.mp4", fps=2.0, turn_s=1.0) as reader:
        pictures = [second.frames for second, _ in zip(reader, range(120), strict=False)]
    alone = [StreamingSession(model) for _ in range(num_streams)]
    engine = Engine(model, num_slots=num_streams)
    together = [StreamingSession(engine.model, engine=engine) for _ in range(num_streams)]
    taken: tuple[list[float], list[float]] = ([], [])
    num_warm_up = -(-_WARM_UP_TURNS // num_turns)
    for turn in range(0, (num_warm_up + num_rounds) * num_turns, num_turns):
        seen = [
            [pictures[(7 * place + turn + ahead) % len(pictures)] for ahead in range(num_turns)]
            for place in range(num_streams)
        ]
        one = _timed(lambda seen=seen: _in_turn(alone, seen), taken[0])
        other = _timed(lambda seen=seen: _in_one(engine, together, seen, num_in_engine), taken[1])
        assert one == other, f"turn {turn}: {one} in turn, {other} in one engine"
    return taken[0][num_warm_up:], taken[1][num_warm_up:]


def _in_turn(sessions: list[StreamingSession], seen: list[list[torch.Tensor]]) -> list[list[str]]:
    return [[session.step(picture).text for picture in turns] for session, turns in zip(sessions, seen, strict=True)]


def _in_one(
    engine: Engine, sessions: list[StreamingSession], seen: list[list[torch.Tensor]], num_in_engine: int
) -> list[list[str]]:
    futures = [[] for _ in sessions]

    def hand_over(place: int):
        if len(futures[place]) < len(seen[place]):
            futures[place].append(sessions[place].submit(seen[place][len(futures[place])]))
            futures[place][-1].add_done_callback(lambda _: hand_over(place))

    for place in range(len(sessions)):
        for _ in range(num_in_engine):
            hand_over(place)
    engine.run_until_idle()
    return [[future.result().text for future in said] for said in futures]


def _timed(work: Callable[[], list[list[str]]], taken: list[float]) -> list[list[str]]:
    started = time.perf_counter()
    result = work()
    taken.append(time.perf_counter() - started)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--turns", type=int, default=1, help="of every stream in a round")
    parser.add_argument("--in-engine", type=int, default=1, help="turns of a stream that the engine has at once")
    options = parser.parse_args()
    in_turn, in_one = time_both(
        options.streams, options.rounds, num_turns=options.turns, num_in_engine=options.in_engine
    )
    ratio = statistics.median(a / b for a, b in zip(in_turn, in_one, strict=True))
    per_second = options.streams * options.turns / statistics.median(in_one)
    print(f"{ratio:.2f} times the throughput of sessions in turn: {per_second:.0f} seconds of stream a second")
    print(
        f"medians a round: {statistics.median(in_turn) * 1e3:.0f} ms in turn, {statistics.median(in_one) * 1e3:.0f} ms"
    )
