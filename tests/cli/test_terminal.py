import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from streamingvlm.cli.terminal import LiveView, PlainView, open_view
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.stats import SessionStats

SPOKEN = Commentary(61.0, 62.0, "Goal for [red]Reds[/red]!", 5, 0.1)
SILENT = Commentary(62.0, 63.0, "", 1, 0.1)


def session_with(capacity_tokens):
    stats = SessionStats(capacity_tokens=capacity_tokens)
    stats.record_turn(stream_s=1.0, latency_s=0.05, num_tokens=5, cache_tokens=1203)
    return SimpleNamespace(stats=stats)


def live_view(duration_s):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    return LiveView(console, duration_s), console.file


def test_the_plain_view_prints_a_line_per_turn_that_is_not_silent(capsys):
    with PlainView() as view:
        view.show(SPOKEN, session_with(None))
        view.show(SILENT, session_with(None))
        view.note("wrote a.vtt")
    out, err = capsys.readouterr()
    assert out == "[01:01] Goal for [red]Reds[/red]!\n"
    assert err == "wrote a.vtt\n"


def test_control_characters_are_removed(capsys):
    PlainView().show(Commentary(0.0, 1.0, "one\ntwo\x1b[2J\u2028three", 3, 0.1), session_with(None))
    assert capsys.readouterr().out == "[00:00] one two [2J three\n"


def test_a_pipe_gets_the_plain_view(capsys):
    assert isinstance(open_view(60.0), PlainView)


@pytest.mark.parametrize(
    ("duration_s", "capacity", "parts"),
    [
        (120.0, 1536, ["01:03 / 02:00", "20.0x real time", "cache 1,203 of 1,536 tokens"]),
        (7200.0, None, ["01:03 / 2:00:00", "cache 1,203 tokens"]),
        (None, 1536, ["01:03 ", "20.0x real time"]),
    ],
)
def test_the_bar_shows_time_speed_and_cache_size(duration_s, capacity, parts):
    view, screen = live_view(duration_s)
    with view:
        view.show(SPOKEN, session_with(capacity))
        view.show(SILENT, session_with(capacity))
    shown = screen.getvalue()
    assert [part for part in parts if part not in shown] == []


def test_words_scroll_above_the_bar_with_their_brackets():
    view, screen = live_view(120.0)
    with view:
        view.show(SPOKEN, session_with(None))
        view.show(SILENT, session_with(None))
    view.note("wrote [a].vtt")
    shown = screen.getvalue()
    assert "[01:01] Goal for [red]Reds[/red]!" in shown
    assert "[01:02]" not in shown
    assert shown.rindex("wrote [a].vtt") > shown.rindex("real time")
