"""A stream's stats are written by the thread that runs the model and by the one that reads the source."""

import sys
import threading

import pytest

from streamingvlm.inference.stats import SessionStats


@pytest.fixture
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_reading_while_another_thread_records_never_fails(switching_often):
    for _ in range(50):
        stats, errors = SessionStats(), []

        def record(stats=stats):
            for number in range(400):
                stats.record_stage(f"stage {number}", 1.0)

        writer = threading.Thread(target=record)
        writer.start()
        while writer.is_alive():
            try:
                assert set(stats.latest) <= {f"stage {number}" for number in range(400)}
                assert len(stats.stages) <= 400
            except RuntimeError as error:
                errors.append(error)
        writer.join()
        assert not errors, "the dict changed while it was read"


def test_what_two_threads_record_is_counted_once_each(switching_often):
    stats = SessionStats()

    def read_source():
        for _ in range(20_000):
            stats.record_stage("video", 1.0)

    def run_model():
        for _ in range(20_000):
            stats.record_turn(stream_s=1.0, latency_s=1.0, num_tokens=1, cache_tokens=7)

    threads = [threading.Thread(target=work) for work in (read_source, run_model)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (stats.busy_s, stats.stream_s, stats.num_turns) == (40_000.0, 20_000.0, 20_000)


@pytest.mark.parametrize("capacity_tokens, most", [(200, 200), (None, 50)])
def test_in_a_notebook_stats_show_the_fill_of_the_cache_and_each_stage(capacity_tokens, most):
    stats = SessionStats(capacity_tokens=capacity_tokens)
    stats.record_stage("<prefill>", 0.5)
    stats.record_turn(stream_s=1.0, latency_s=0.5, num_tokens=3, cache_tokens=50)
    html = stats._repr_html_()
    assert f'max="{most}" value="50"' in html
    assert "&lt;prefill&gt;" in html and "<prefill>" not in html
