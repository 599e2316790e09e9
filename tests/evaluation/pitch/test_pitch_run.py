"""The record of a stream: its measurements, its file, and streams that end early."""

import json
from dataclasses import replace
from itertools import islice

import pytest

from streamingvlm.errors import DataError
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.evaluation.pitch.run import PitchRun, RunSecond, fault_of, read_run, right_share, write_run
from streamingvlm.evaluation.pitch.run_report import report_of, worst_seconds
from streamingvlm.evaluation.report.rendering import render_report
from streamingvlm.inference.limits import StreamLimits
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, reference_line, score
from streamingvlm.pitch.styles import TELEGRAM

SEED = 1007


@pytest.fixture(scope="module")
def model():
    return load_model("pitch", device="cpu")


@pytest.fixture(scope="module")
def run(model):
    return evaluate_pitch(StreamingSession(model), seed=SEED, duration_s=24)


def test_a_record_is_read_as_it_was_written(tmp_path, run):
    path = tmp_path / "runs" / "run.jsonl"
    run = replace(run, name="streaming", commit="abc", seconds=(*run.seconds, RunSecond(24.0, "shot – né", None)))
    write_run(path, run)
    assert read_run(path) == run
    assert len(path.read_text("utf-8").splitlines()) == 1 + len(run.seconds)


def test_it_is_scored_as_the_stream_was(run):
    truth = list(islice(Match(SEED).seconds(), 24))
    lines = [second.said for second in run.seconds]
    assert [second.truth for second in run.seconds] == [reference_line(second) for second in truth]
    assert str(run.report) == str(score(truth, lines))
    assert len(run.thirds) == 3 and sum(part.num_seconds for part in run.fifths) == 24
    assert run.report.accuracy > 0.8  # words were heard, not only kept


def test_the_cache_is_counted_by_kind_to_the_last_token(model):
    session = StreamingSession(model, cache={"vision_window_s": 2.0, "turn_window_s": 3.0, "text_sink_tokens": 8})
    fills = []
    run = evaluate_pitch(session, seed=SEED, duration_s=12, on_line=lambda *_: fills.append(session.layout.num_tokens))
    assert [second.fill.num_tokens for second in run.seconds] == fills
    assert run.max_cache_tokens == max(fills)
    by_kind = [second.fill for second in run.seconds]
    assert by_kind[-1].vision_tokens == 2 * by_kind[0].vision_tokens > 0
    assert len({fill.sink_tokens for fill in by_kind}) == 1
    assert by_kind[0].window_tokens < by_kind[-1].window_tokens


def test_a_stream_past_its_limit_is_scored_as_silent_from_there_on(model):
    run = evaluate_pitch(StreamingSession(model), seed=SEED, duration_s=10, limits=StreamLimits(busy_s=0.0))
    assert len(run.watched) == 1 and len(run.seconds) == 10
    assert run.stopped.startswith("the work took") and "after 1 s of stream" in run.stopped
    told = [line for line in (second.truth for second in run.seconds[1:]) if line]
    assert run.report.num_seconds == 10
    assert all(second.fault == (1.0 if second.truth else 0.0) for second in run.seconds[1:])
    assert told and "ended early" in str(run) and "ended early" in render_report(report_of(run))


def test_memory_is_a_limit_too(model):
    session = StreamingSession(model, cache={"policy": "full"})
    run = evaluate_pitch(session, seed=SEED, duration_s=4, limits=StreamLimits(cache_mb=1.0))
    assert len(run.watched) == 1 and "more than 1" in run.stopped
    assert not evaluate_pitch(session, seed=SEED, duration_s=2, limits=StreamLimits(cache_mb=10_000.0)).stopped


def test_a_blindfolded_model_sees_black(model, monkeypatch):
    seen = []
    session = StreamingSession(model)
    step = session.step
    monkeypatch.setattr(session, "step", lambda frames: seen.append(frames) or step(frames))
    evaluate_pitch(session, seed=SEED, duration_s=2, black_frames=True)
    assert [frames.sum().item() for frames in seen] == [0, 0]


def test_a_line_is_judged_by_all_that_it_has_to_tell():
    truth = "goal for red! Rovers home 2-1"
    assert fault_of(truth, truth, TELEGRAM) == 0
    assert fault_of(truth, "goal for red! Rovers home 2-0", TELEGRAM) == 0.5
    assert fault_of(truth, "goal", TELEGRAM) == 0.5
    assert fault_of(truth, "shot", TELEGRAM) == fault_of(truth, "", TELEGRAM) == fault_of("", "shot", TELEGRAM) == 1
    assert fault_of("shot", "shot by blue", TELEGRAM) == fault_of("", "", TELEGRAM) == 0


def test_right_lines_are_counted_where_something_happened():
    seconds = [RunSecond(0.0, "", "", 0.0), RunSecond(1.0, "shot", "shot", 0.0), RunSecond(2.0, "shot", "", 1.0)]
    assert right_share(seconds) == 0.5


def test_time_a_token_and_pace():
    seconds = [RunSecond(float(at), "", "", 0.0, 2, 0.1) for at in range(4)]
    run = PitchRun(1, "telegram", (*seconds, RunSecond(4.0, "shot", None)))
    assert run.token_s == pytest.approx(0.05) and run.realtime_factor == pytest.approx(10)


@pytest.mark.parametrize(
    "text",
    ["", "{}\n", "[]\n", "nonsense", '{"format": "pitch-run-2"}\n', '{"format": "pitch-run-1"}\n{"start_s": 0}\n'],
)
def test_a_file_that_is_no_record_is_named_with_the_remedy(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"run\.jsonl is no record of a run .*; delete it"):
        read_run(path)


def test_the_summary_of_a_run_is_plain_json(run):
    text = json.dumps(run.summary(), allow_nan=False)
    assert json.loads(text)["report"]["num_seconds"] == 24


def test_pictures_are_of_the_worst_seconds(run):
    seconds = tuple(replace(second, fault=1.0 if second.start_s in (3, 17) else 0.0) for second in run.seconds)
    watched = report_of(replace(run, seconds=seconds))
    assert [thumbnail.start_s for thumbnail in watched.thumbnails] == [3, 17]
    assert watched.thumbnails[0].picture.shape == (3, 224, 224)
    assert "1007" in render_report(watched)
    assert worst_seconds(report_of(run, num_thumbnails=0).turns, 0) == []
