"""A run on Pitch as the report shows it: its figures, and pictures of the seconds that went worst."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import isnan

from streamingvlm.evaluation.pitch.run import PitchRun
from streamingvlm.evaluation.report.watched import Thumbnail, Watched, WatchedSecond
from streamingvlm.pitch import Match, render

_NUM_THUMBNAILS = 12


def as_watched(run: PitchRun, *, num_thumbnails: int = _NUM_THUMBNAILS) -> Watched:
    """What the report shows of a run; the pictures are drawn anew from the seed."""
    seconds = [
        WatchedSecond(second.start_s, second.said, second.truth, second.latency_s, second.fill, second.fault)
        for second in run.seconds
    ]
    return Watched(
        title=f"Pitch, the match of seed {run.seed}",
        subtitle=_subtitle(run),
        seconds=seconds,
        figures=_figures(run),
        settings=_settings(run),
        thumbnails=tuple(_thumbnails(run, worst_seconds(seconds, num_thumbnails))),
        note=f"The stream ended early: {run.stopped}." if run.stopped else "",
    )


def worst_seconds(seconds: Sequence[WatchedSecond], num_seconds: int) -> list[int]:
    """Places of the most faulty seconds, of the worst minutes first, in the order of the stream; all have a fault."""
    by_minute: Counter[int] = Counter()
    for place, second in enumerate(seconds):
        by_minute[place // 60] += second.fault or 0
    watched = [place for place, second in enumerate(seconds) if second.said is not None and second.fault]
    worst_first = sorted(watched, key=lambda place: (-seconds[place].fault, -by_minute[place // 60], place))
    return sorted(worst_first[:num_seconds])


def _subtitle(run: PitchRun) -> str:
    cache = run.settings.get("cache", {})
    held = {
        "policy": "{} cache",
        "positions": "{} positions",
        "text_sink_tokens": "sink {} tokens",
        "text_window_tokens": "window {} tokens",
        "vision_window_s": "vision {:g} s",
    }
    parts = [text.format(cache[name]) for name, text in held.items() if cache.get(name) is not None]
    return ", ".join(filter(None, (run.name, f"{len(run.seconds):,} s of stream", *parts)))


def _figures(run: PitchRun) -> dict[str, str]:
    report = run.report
    shares = {
        "macro-F1": report.macro_f1,
        "lines right": run.right_share,
        "side": report.side_accuracy,
        "club": report.club_accuracy,
        "score": report.score_accuracy,
        "silence F1": report.silence_f1,
        "called late": report.late_share,
    }
    told = {name: "–" if isnan(value) else f"{value:.3f}" for name, value in shares.items()}
    return told | {
        "real time": f"{run.realtime_factor:.1f}×",
        "a token": f"{run.token_s * 1e3:.0f} ms",
        "cache tokens": f"{run.max_cache_tokens:,}",
    }


def _settings(run: PitchRun) -> dict[str, dict[str, object]]:
    """The run's settings in groups; single values stand in a group of their own."""
    groups = {name: dict(value) for name, value in run.settings.items() if isinstance(value, dict)}
    single = {name: value for name, value in run.settings.items() if not isinstance(value, dict)}
    return {"run": {**single, "seed": run.seed, "style": run.style, "commit": run.commit or "–"}, **groups}


def _thumbnails(run: PitchRun, places: Sequence[int]) -> Iterator[Thumbnail]:
    if not places:
        return
    wanted = set(places)
    for second in islice(Match(run.seed).seconds(), places[-1] + 1):
        if second.index in wanted:
            # The middle of the second, when what happens in it is under way.
            yield Thumbnail(run.seconds[second.index].start_s, render(second, size=224)[1])
