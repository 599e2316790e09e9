"""Stream a match of Pitch and score the commentary."""

from pathlib import Path
from typing import Any

from rich.progress import track

from streamingvlm import StreamingSession
from streamingvlm.atomic import write_json
from streamingvlm.config import at_least
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.documents import check_writable
from streamingvlm.evaluation.pitch.match import evaluate_pitch
from streamingvlm.evaluation.pitch.run import PitchRun, write_run
from streamingvlm.evaluation.pitch.run_report import report_of
from streamingvlm.evaluation.report.rendering import write_report
from streamingvlm.pitch.camera import Camera
from streamingvlm.pitch.styles import STYLES


def evaluate(options: dict[str, Any]):
    """Print the score; write the score, the record of every second and the report to the paths that are given."""
    check_style(options["style"])
    at_least("duration_s", options["duration_s"], 1, "seconds of stream")
    camera = Camera(**options["camera"])
    check_writable(*(Path(options[name]) for name in ("result_path", "record_path", "report_path") if options[name]))
    session = StreamingSession.from_pretrained(
        **options["model"], cache=options["cache"], video=options["video"], sampling=options["sampling"]
    )
    ticks = iter(track(range(options["duration_s"]), description="streaming"))
    run = evaluate_pitch(
        session,
        seed=options["seed"],
        duration_s=options["duration_s"],
        style=STYLES[options["style"]],
        camera=camera,
        on_line=lambda *_: next(ticks, None),
    )
    next(ticks, None)  # the bar is one step behind; complete it
    print(run)
    write_outputs(run, options)


def write_outputs(run: PitchRun, options: dict[str, Any]):
    """Write the files that the options name."""
    if options["result_path"]:
        write_json(Path(options["result_path"]), run.summary())
    if options["record_path"]:
        write_run(Path(options["record_path"]), run)
    if options["report_path"]:
        write_report(report_of(run), Path(options["report_path"]))


def check_style(style: str):
    """Raise ConfigError for an unknown style."""
    if style not in STYLES:
        raise ConfigError(f"style={style} is unknown; choose one of {', '.join(STYLES)}")
