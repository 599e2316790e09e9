"""Time the rounds of a recorded run:

    python tests/golden/time_rounds.py tests/data/golden/A_default --threads 2

The released code took 301 ms a round of the full A_default on two threads of a CPU.
"""

import argparse
import statistics
from pathlib import Path

import torch
from recording import Recording

from streamingvlm.model.loading import load_model


def time_rounds(run: Path, num_threads: int) -> list[float]:
    """Seconds that each round took, from frames to the end of the reply."""
    torch.set_num_threads(num_threads)
    recording = Recording(run.parent, run.name)
    session = recording.session(load_model(run.parent / "model", device="cpu"))
    return [session.step(recording.frames_of(row["round"])).latency_s for row in recording.rounds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's files without their ending")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    seconds = time_rounds(options.run, options.threads)
    print(f"mean {statistics.mean(seconds) * 1e3:.0f} ms, median {statistics.median(seconds) * 1e3:.0f} ms a round")
