"""Fine-tune on videos with transcripts, then stream with the result: ``python examples/fine_tune.py FOLDER``.

The videos are matches of Pitch, drawn here, with their commentary as subtitles. The same three steps fit your own: put
``match.vtt`` (or .srt, or WhisperX .json) beside ``match.mp4``. On the command line they are ``streamingvlm prepare``,
``train`` and ``stream``; docs/training.md has the settings of a real run.
"""

import sys
from itertools import islice
from pathlib import Path

from streamingvlm import StreamingSession
from streamingvlm.data.prepare import PrepareConfig, prepare
from streamingvlm.data.selection import SelectionConfig
from streamingvlm.inference.writers import timestamp
from streamingvlm.pitch import Match, reference_line
from streamingvlm.pitch.renderer import write_mp4
from streamingvlm.training.fine_tuning import FineTuning, FineTuningSettings
from streamingvlm.training.settings import FitSettings


def write_match(folder: Path, seed: int, duration_s: int):
    """Write a match and its subtitles."""
    folder.mkdir(parents=True, exist_ok=True)
    write_mp4(folder / f"{seed}.mp4", seed, duration_s, size=112, fps=2)
    lines = [reference_line(second) for second in islice(Match(seed).seconds(), duration_s)]
    cues = [f"{timestamp(s)} --> {timestamp(s + 0.9)}\n{line}\n" for s, line in enumerate(lines) if line]
    (folder / f"{seed}.vtt").write_text("\n".join(["WEBVTT\n", *cues]))


def main(folder: str | Path = "fine-tune", num_steps: int = 2):
    """Prepare, train and stream in a new folder."""
    folder = Path(folder)
    for seed in (1, 2):
        write_match(folder / "videos", seed, duration_s=24)
    selection = SelectionConfig(chunk_turns=12, overlap_turns=6, min_words_per_s=0.5)
    prepare([folder / "videos"], folder / "prepared", PrepareConfig(held_out_fraction=0), selection)
    fit = FitSettings(
        num_steps=num_steps, batch_size=2, learning_rate=1e-5, warmup_steps=1, bf16=False, log_every_steps=1
    )
    tuning = FineTuning(
        FineTuningSettings(data=folder / "prepared", model="pitch", folder=folder / "run", fit=fit, device="cpu")
    )
    print("losses:", [round(point["loss"], 3) for point in tuning.fit() if "loss" in point])
    with StreamingSession.from_pretrained(tuning.target) as session:
        for line in islice(session.stream(folder / "videos" / "1.mp4"), 4):
            print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
