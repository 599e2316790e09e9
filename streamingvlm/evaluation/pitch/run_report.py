"""The report of a run on Pitch: its figures and frames of its worst seconds."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from math import isnan

from streamingvlm.evaluation.pitch.run import PitchRun
from streamingvlm.evaluation.report.stream_report import ReportTurn, StreamReport, Thumbnail
from streamingvlm.pitch import Match, render

_NUM_THUMBNAILS = 12


def report_of(run: PitchRun, *, num_thumbnails: int = _NUM_THUMBNAILS) -> StreamReport:
    """Return the report of a run; the thumbnails are rendered again from the seed."""
    turns = [
        ReportTurn(second.start_s, second.said, second.truth, second.latency_s, second.fill, second.fault)
        for second in run.seconds
    ]
    return StreamReport(
        title=f"Pitch, the match of seed {run.seed}",
        subtitle=_subtitle(run),
        turns=turns,
        figures=_figures(run),
        settings=_settings(run),
        thumbnails=tuple(_thumbnails(run, worst_seconds(turns, num_thumbnails))),
        note=f"The stream ended early: {run.stopped}." if run.stopped else "",
    )


def worst_seconds(turns: Sequence[ReportTurn], num_seconds: int) -> list[int]:
    """Return the indices of the most faulty seconds, in stream order; ties go to the worse minute."""
    by_minute: Counter[int] = Counter()
    for index, turn in enumerate(turns):
        by_minute[index // 60] += turn.fault or 0
    faulty = [index for index, turn in enumerate(turns) if turn.said is not None and turn.fault]
    worst_first = sorted(faulty, key=lambda index: (-turns[index].fault, -by_minute[index // 60], index))
    return sorted(worst_first[:num_seconds])


def _subtitle(run: PitchRun) -> str:
    cache = run.settings.get("cache", {})
    formats = {
        "policy": "{} cache",
        "positions": "{} positions",
        "text_sink_tokens": "sink {} tokens",
        "text_window_tokens": "window {} tokens",
        "vision_window_s": "vision {:g} s",
    }
    parts = [text.format(cache[name]) for name, text in formats.items() if cache.get(name) is not None]
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
    figures = {name: "–" if isnan(value) else f"{value:.3f}" for name, value in shares.items()}
    return figures | {
        "real time": f"{run.realtime_factor:.1f}×",
        "time per token": f"{run.token_s * 1e3:.0f} ms",
        "cache, tokens": f"{run.max_cache_tokens:,}",
    }


def _settings(run: PitchRun) -> dict[str, dict[str, object]]:
    """Return the run's settings in groups; single values form a group of their own."""
    groups = {name: dict(value) for name, value in run.settings.items() if isinstance(value, dict)}
    single = {name: value for name, value in run.settings.items() if not isinstance(value, dict)}
    return {"run": {**single, "seed": run.seed, "style": run.style, "commit": run.commit or "–"}, **groups}


def _thumbnails(run: PitchRun, indices: Sequence[int]) -> Iterator[Thumbnail]:
    if not indices:
        return
    wanted = set(indices)
    for second in islice(Match(run.seed).seconds(), indices[-1] + 1):
        if second.index in wanted:
            # The middle of the second, while its event is under way.
            yield Thumbnail(run.seconds[second.index].start_s, render(second, size=224)[1])
