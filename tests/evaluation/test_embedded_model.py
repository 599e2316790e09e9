"""The embedded model, free-running through the session on matches that training did not use."""

import pytest

from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.inference.session import StreamingSession
from streamingvlm.pitch.camera import Camera

UNSEEN_SEED = 1007


@pytest.fixture(scope="module")
def session():
    return StreamingSession.from_pretrained("pitch", device="cpu")


def test_it_names_what_happens_in_two_minutes_of_an_unseen_match(session):
    result = evaluate_pitch(session, seed=UNSEEN_SEED, duration_s=120)
    assert result.report.accuracy >= 0.85
    assert result.report.side_accuracy >= 0.9
    assert session.stats.cache_tokens <= session.stats.capacity_tokens


def right_shares(session, cameras):
    return [evaluate_pitch(session, seed=4242, duration_s=40, camera=camera).right_share for camera in cameras]


def test_compressed_frames_are_as_good_as_rendered_ones(session):
    shares = right_shares(session, [Camera(size=224, jpeg_quality=quality) for quality in (None, 40)])
    assert min(shares) >= 0.97 * max(shares) > 0.9


@pytest.mark.xfail(strict=True, reason="The weights were trained on frames at exact half seconds; see docs/results.md.")
def test_the_phase_of_the_camera_does_not_matter(session):
    shares = right_shares(session, [Camera(phase_ms=phase) for phase in (-188, 0, 187)])
    assert min(shares) >= 0.97 * max(shares)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [UNSEEN_SEED, 1008])
def test_it_holds_up_for_half_an_hour(session, seed):
    result = evaluate_pitch(session, seed=seed, duration_s=1800)
    assert result.report.macro_f1 >= 0.85
    assert result.report.side_accuracy >= 0.95
    assert result.thirds[2].macro_f1 >= 0.97 * result.thirds[0].macro_f1


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_five_minutes(session):
    result = evaluate_pitch(session, seed=1009, duration_s=3600)
    assert result.final_mb <= 1.01 * result.settled_mb
