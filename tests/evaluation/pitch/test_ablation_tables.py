"""The rows of the tables are valid settings of a session and do what their names say."""

import pytest

from streamingvlm.cache.layout import SegmentKind
from streamingvlm.config import CacheConfig
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.pitch.ablation_runs import AblationRun, RunSetup
from streamingvlm.evaluation.pitch.ablation_summary import MEASURES
from streamingvlm.evaluation.pitch.ablation_tables import TABLE_NAMES, ablation_table
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import load_model
from streamingvlm.pitch import Match, render

SETUP = RunSetup(model={"name": "pitch", "device": "cpu", "dtype": None}, duration_s=4)
MODELS = {"overlapped": "pitch", "apart": "pitch"}


def _table(name, checkpoints=MODELS):
    settings = SETUP.session_settings()
    return ablation_table(name, base=settings["cache"], fps=settings["video"].fps, checkpoints=checkpoints)


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_every_row_is_a_setting_of_the_session_and_every_column_a_measure(name):
    table = _table(name)
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names) > 1
    assert all(isinstance(AblationRun(row, 1, SETUP).settings["cache"], CacheConfig) for row in table.rows)
    assert set(table.columns) <= set(MEASURES)
    assert bool(table.paper) == any(row.paper for row in table.rows)


def test_the_rows_of_text_are_ways_to_divide_what_the_checkpoint_keeps():
    base = SETUP.session_settings()["cache"]
    sizes = [(row.cache["text_sink_tokens"], row.cache["text_window_tokens"]) for row in _table("text").rows]
    budget = base.text_sink_tokens + base.text_window_tokens
    assert sizes[0] == (base.text_sink_tokens, base.text_window_tokens)
    assert {(0, budget), (budget, 0), (0, 0)} <= set(sizes)
    assert sum(a + b == budget for a, b in sizes) >= 5
    steps = {row.cache.get("text_step_tokens", base.text_step_tokens) for row in _table("text").rows}
    assert {1, base.text_step_tokens, base.text_window_tokens} <= steps


def test_rows_of_two_tables_that_would_say_the_same_are_one_run():
    streaming = {
        _table(name).rows[-1].name: AblationRun(_table(name).rows[-1], 1, SETUP).path for name in ("modes", "fifths")
    }
    rows = {row.name: row for row in (*_table("vision").rows, *_table("positions").rows)}
    window = AblationRun(rows["16 s"], 1, SETUP).path
    assert {*streaming.values(), window, AblationRun(rows["contiguous"], 1, SETUP).path} == {window}
    paths = {
        AblationRun(rows[name], seed, SETUP).path
        for name in ("0 s (black pictures)", "16 s", "32 s")
        for seed in (1, 2)
    }
    assert len(paths) == 6


@pytest.fixture(scope="module")
def model():
    return load_model("pitch", device="cpu")


@pytest.mark.parametrize("row", _table("simple_stream").rows[1:], ids=lambda row: row.name)
def test_simple_stream_prefills_the_newest_frames_again_and_nothing_else(model, row):
    session = StreamingSession(model, **AblationRun(row, 1, SETUP).settings)
    match = Match(3)
    session.previous_text = match.intro
    session.reset()
    pictures = []
    session.vision_encoder.features, features = (
        lambda frames: pictures.append(frames) or features(frames),
        session.vision_encoder.features,
    )
    for _, second in zip(range(6), match.seconds(), strict=False):
        session.step(render(second))
    num_frames = int(row.name.split()[1])
    seen = sum(segment.kind is SegmentKind.VISION for segment in session.layout.segments)
    assert session.cache_config.recompute and seen == min(6, num_frames // 2)
    spoken = {
        segment.turn for segment in session.layout.segments if segment.kind in (SegmentKind.SPEECH, SegmentKind.TAIL)
    }
    assert spoken <= {5}
    assert bool(session.layout.count(SegmentKind.PREVIOUS)) == row.name.endswith("introduction")


def test_what_is_not_there_is_named():
    with pytest.raises(ConfigError, match="'modi', which is unknown; choose from modes, positions"):
        _table("modi")
    with pytest.raises(ConfigError, match=r"give checkpoints\.apart=FOLDER"):
        _table("training", {"overlapped": "pitch", "apart": None})
