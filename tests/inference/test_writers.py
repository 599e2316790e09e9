import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import ConfigError, StreamingVLMError
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.output_files import open_writers, reopen_writers
from streamingvlm.inference.writers import JsonlWriter, SrtWriter, TxtWriter, VttWriter, timestamp
from streamingvlm.provenance import Provenance, is_generated_text

ORIGIN = Provenance("pitch", "match.mp4", "Who --> scores?", {"fps": 2.0}, version="1.2.3")
NOTE = (
    'NOTE streamingvlm\n{"streamingvlm": {"model": "pitch", "source": "match.mp4", "query": "Who -> scores?", '
    '"settings": {"fps": 2.0}, "version": "1.2.3"}}'
)
LINES = [
    Commentary(0.0, 1.0, "Kick-off!", 3, 0.05),
    Commentary(1.0, 2.0, "", 1, 0.03),
    Commentary(2.0, 3.0, "Reds & Blues <1>\n\n--> on", 8, 0.08),
]

WRITE_FOR_EVER = """
import itertools, sys
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.output_files import open_writers

with open_writers("match.mp4", path=sys.argv[1]) as writer:
    for second in itertools.count():
        writer.write(Commentary(second, second + 1.0, "" if second % 3 == 0 else f"word {second} " * 9, 3, 0.1))
"""


def text_of(kind, path, lines=LINES):
    writer = kind(path)
    for line in lines:
        writer.write(line, ORIGIN)
    writer.close()
    return path.read_text(encoding="utf-8")


def vtt_cues(text):
    """Start, end and words of each cue; fails where the text is anything but a whole WebVTT file."""
    header, note, *blocks = text.removesuffix("\n\n").split("\n\n")
    assert header == "WEBVTT"
    assert note.startswith("NOTE streamingvlm\n") and "-->" not in note
    return [
        re.fullmatch(r"(\d\d:\d\d:\d\d\.\d{3}) --> (\d\d:\d\d:\d\d\.\d{3})\n(.+)", block).groups() for block in blocks
    ]


def srt_cues(text):
    blocks = text.removesuffix("\n\n").split("\n\n")
    pattern = r"(\d+)\n(\d\d:\d\d:\d\d,\d{3}) --> (\d\d:\d\d:\d\d,\d{3})(?:  streamingvlm)?\n(.+)"
    return [re.fullmatch(pattern, block).groups() for block in blocks]


def test_vtt_has_a_cue_for_each_spoken_second(tmp_path):
    assert text_of(VttWriter, tmp_path / "a.vtt") == (
        f"WEBVTT\n\n{NOTE}\n\n"
        "00:00:00.000 --> 00:00:01.000\nKick-off!\n\n"
        "00:00:02.000 --> 00:00:03.000\nReds &amp; Blues &lt;1&gt; --&gt; on\n\n"
    )


def test_srt_numbers_the_spoken_seconds_from_one(tmp_path):
    assert text_of(SrtWriter, tmp_path / "a.srt") == (
        "1\n00:00:00,000 --> 00:00:01,000  streamingvlm\nKick-off!\n\n"
        "2\n00:00:02,000 --> 00:00:03,000\nReds & Blues <1> -> on\n\n"
    )


def test_jsonl_has_every_second_with_all_that_is_known_of_it(tmp_path):
    header, *rows = [json.loads(row) for row in text_of(JsonlWriter, tmp_path / "a.jsonl").splitlines()]
    assert header == {"streamingvlm": asdict(ORIGIN)}
    assert [Commentary(**row) for row in rows] == LINES


def test_txt_is_what_the_terminal_shows(tmp_path):
    assert text_of(TxtWriter, tmp_path / "a.txt") == "[00:00] Kick-off!\n[00:02] Reds & Blues <1> --> on\n"


@pytest.mark.parametrize("kind", [VttWriter, SrtWriter, JsonlWriter])
def test_the_mark_is_found_and_players_read_past_it(kind, tmp_path):
    path = tmp_path / f"a{kind.suffix}"
    text = text_of(kind, path)
    assert is_generated_text(text)
    assert is_generated_text("\ufeff" + text.replace("\n", "\r\n"))
    if kind is not JsonlWriter:
        with av.open(str(path)) as container:
            cues = [(float(p.pts * p.time_base), bytes(p).decode()) for p in container.demux() if p.size]
        assert [start_s for start_s, _ in cues] == [0.0, 2.0]
        assert not any("streamingvlm" in words for _, words in cues)


@pytest.mark.parametrize(
    "text",
    [
        "WEBVTT\n\n00:00.000 --> 00:01.000\nstreamingvlm\n",
        "1\n00:00:00,000 --> 00:00:01,000\nstreamingvlm\n",
        '{"segments": [{"text": "streamingvlm"}]}',
        "WEBVTT\n\nNOTE made by hand with streamingvlm in mind\n",
        "",
    ],
)
def test_people_may_speak_of_us(text):
    assert not is_generated_text(text)


def test_files_are_continued_after_the_last_line_that_is_kept(tmp_path):
    with open_writers("match.mp4", path=tmp_path / "whole") as writer:
        for line in LINES * 2:
            writer.write(line)
    with open_writers("match.mp4", path=tmp_path / "parts") as writer:
        for line in LINES:
            writer.write(line)
        kept = writer.sizes
        writer.write(Commentary(9.0, 10.0, "never saved", 2, 0.1))
    with reopen_writers(kept, "match.mp4", captions="burned", start_s=0.0, caption="") as writer:
        for line in LINES:
            writer.write(line)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_text() == path.read_text()


def test_a_file_that_was_shortened_is_not_continued(tmp_path):
    with open_writers("match.mp4", path=tmp_path, formats=["vtt"]) as writer:
        writer.write(LINES[0])
        sizes = writer.sizes
    (tmp_path / "match.vtt").write_text("WEBVTT\n")
    with pytest.raises(StreamingVLMError, match=r"match\.vtt is gone or was shortened"):
        reopen_writers(sizes, "match.mp4", captions="burned", start_s=0.0, caption="")


def test_the_video_itself_is_never_overwritten(tmp_path):
    video = tmp_path / "match.mp4"
    video.write_bytes(b"film")
    with pytest.raises(ConfigError, match="is the video itself"):
        open_writers(video, path=video, formats=["mp4"], overwrite=True)
    assert video.read_bytes() == b"film"


def test_each_second_is_in_the_file_before_the_next(tmp_path):
    with open_writers("match.mp4", path=tmp_path) as writer:
        for num_lines, line in enumerate(LINES, start=1):
            writer.write(line)
            assert len((tmp_path / "match.jsonl").read_text().splitlines()) == 1 + num_lines
            num_spoken = sum(not line.is_silent for line in LINES[:num_lines])
            assert len(vtt_cues((tmp_path / "match.vtt").read_text())) == num_spoken
            assert len(srt_cues((tmp_path / "match.srt").read_text())) == num_spoken


@pytest.mark.parametrize(
    ("time_s", "expected"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3723.4564, "01:02:03.456"), (360_000, "100:00:00.000")],
)
def test_timestamps(time_s, expected):
    assert timestamp(time_s) == expected


@given(st.floats(0, 1e7))
def test_a_timestamp_tells_the_time_to_the_millisecond(time_s):
    hours, minutes, seconds = timestamp(time_s).split(":")
    assert 0 <= float(seconds) < 60
    assert 0 <= int(minutes) < 60
    assert int(hours) * 3600 + int(minutes) * 60 + float(seconds) == pytest.approx(time_s, abs=0.00051)


def test_a_kill_leaves_whole_files(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 180
    rows = tmp_path / "match.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if rows.exists() and rows.stat().st_size > 200_000:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    seconds = [json.loads(row)["start_s"] for row in rows.read_text().split("\n")[1:-1]]
    assert seconds == list(range(len(seconds)))
    assert len(seconds) > 500
    num_spoken = sum(second % 3 != 0 for second in seconds)
    # The kill may fall between two files of one second.
    assert abs(len(vtt_cues((tmp_path / "match.vtt").read_text())) - num_spoken) <= 1
    numbers = [int(number) for number, *_ in srt_cues((tmp_path / "match.srt").read_text())]
    assert numbers == list(range(1, len(numbers) + 1))


@contextmanager
def largest_file(num_bytes):
    """As on a full disk: a write beyond so many bytes is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_in_a_line_and_leaves_whole_cues(tmp_path):
    path = tmp_path / "a.vtt"
    writer = VttWriter(path)
    writer.write(LINES[0], ORIGIN)
    whole = path.read_bytes()
    with (
        largest_file(len(whole) + 10),
        pytest.raises(StreamingVLMError, match=r"a\.vtt: cannot be written further") as error,
    ):
        writer.write(LINES[2], ORIGIN)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == whole
    writer.close()


def test_files_stand_beside_the_video_under_its_name(tmp_path):
    with open_writers(tmp_path / "my match, v1.2.mp4") as writer:
        writer.write(LINES[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my match, v1.2.jsonl",
        "my match, v1.2.srt",
        "my match, v1.2.txt",
        "my match, v1.2.vtt",
    ]


def test_what_exists_is_never_touched_and_a_run_has_one_number(tmp_path):
    (tmp_path / "match.srt").write_text("made by hand")
    for _ in range(2):
        with open_writers(tmp_path / "match.mp4", formats=["vtt", "srt"]) as writer:
            writer.write(LINES[0])
    assert (tmp_path / "match.srt").read_text() == "made by hand"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "match.2.srt",
        "match.2.vtt",
        "match.3.srt",
        "match.3.vtt",
        "match.srt",
    ]


def test_overwriting_replaces_the_whole_file_at_the_first_second(tmp_path):
    old = tmp_path / "match.vtt"
    old.write_text("WEBVTT\n\n" + "much longer than what comes " * 20)
    with open_writers(tmp_path / "match.mp4", formats=["vtt"], overwrite=True) as writer:
        assert "much longer" in old.read_text()
        writer.write(LINES[0])
    assert vtt_cues(old.read_text()) == [("00:00:00.000", "00:00:01.000", "Kick-off!")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_without_a_second_leaves_the_folder_as_it_was(tmp_path, overwrite):
    (tmp_path / "match.vtt").write_text("old")
    with open_writers(tmp_path / "match.mp4", overwrite=overwrite) as writer:
        assert writer.paths == []
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("match.vtt", "old")]


def test_a_path_with_a_known_suffix_is_the_only_file(tmp_path):
    with open_writers("match.mp4", path=tmp_path / "new" / "notes.srt") as writer:
        writer.write(LINES[0])
    assert writer.paths == [tmp_path / "new" / "notes.srt"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.srt"]


def test_no_formats_write_nothing(tmp_path):
    with open_writers(tmp_path / "match.mp4", path=tmp_path / "new", formats=[]) as writer:
        writer.write(LINES[0])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StreamingVLMError, match=r"file.* cannot be written .*output\.path=") as error:
        open_writers("match.mp4", path=tmp_path / "file" / "below")
    assert "\n" not in str(error.value)


def test_a_failure_half_way_leaves_no_empty_files(tmp_path):
    (tmp_path / "match.jsonl").mkdir()
    with pytest.raises(StreamingVLMError, match=r"match\.jsonl"):
        open_writers(tmp_path / "match.mp4", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["match.jsonl"]


def test_an_unknown_format_is_named_before_anything_is_created(tmp_path):
    with pytest.raises(ConfigError, match=r"'ass'.*vtt, srt, txt, jsonl, mp4"):
        open_writers(tmp_path / "match.mp4", formats=["vtt", "ass"])
    assert list(tmp_path.iterdir()) == []
