"""A few seconds of Pitch as prepared data with real videos, in the format of ``streamingvlm prepare``."""

from collections import Counter
from itertools import islice
from pathlib import Path

from streamingvlm.data.chunks import plan_chunks
from streamingvlm.data.prepared_tables import PreparedDataWriter
from streamingvlm.pitch import Match, render
from streamingvlm.pitch.commentary_lines import reference_line
from streamingvlm.video.encoder import write_video

SIDE = 112


def write_prepared(
    folder: Path, *, num_matches: int = 3, duration_s: int = 20, chunk_turns: int = 8, seed: int = 0
) -> Path:
    """Write videos and prepared data of some matches, the last one held out; return the folder of the data."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    with PreparedDataWriter(folder / "prepared") as prepared:
        counts = Counter()
        for number in range(num_matches):
            seconds = list(islice(Match(seed + number).seconds(), duration_s))
            pictures = [picture.permute(1, 2, 0).numpy() for second in seconds for picture in render(second, size=SIDE)]
            write_video(videos / f"{number}.mp4", pictures, fps=2)
            chunks = plan_chunks(duration_s, chunk_turns=chunk_turns, overlap_turns=4)
            split = "held_out" if number == num_matches - 1 else "train"
            counts[f"chunks_{split}"] += len(chunks)
            prepared.add(
                _recording(number, [reference_line(second) for second in seconds], Match(seed + number).intro),
                [_chunk(number, turns, split) for turns in chunks],
            )
        prepared.finish({"turn_s": 1.0, "video_root": str(videos), "counts": dict(counts)})
    return folder / "prepared"


def _recording(number: int, lines: list[str], intro: str) -> dict:
    return {
        "id": f"match {number}",
        "video": f"{number}.mp4",
        "start_s": 0.0,
        "end_s": float(len(lines)),
        "num_turns": len(lines),
        "lines": lines,
        "previous_text": intro,
        "query": "Say what happens." if number else "",
        "title": "",
        "category": "",
        "width": SIDE,
        "height": SIDE,
        "source": "pitch",
        "questions": [],
    }


def _chunk(number: int, turns: range, split: str) -> dict:
    return {
        "recording": f"match {number}",
        "first_turn": turns.start,
        "num_turns": len(turns),
        "num_words": 0,
        "split": split,
    }
