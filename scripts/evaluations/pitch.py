"""Watch a match of Pitch and score what was said of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from streamingvlm import StreamingSession
from streamingvlm.atomic import write_json
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.pitch import evaluate_pitch
from streamingvlm.pitch.styles import STYLES


def evaluate(options: dict[str, Any]):
    """Print the score, and keep it as JSON where ``result_path`` names a file."""
    if options["style"] not in STYLES:
        raise ConfigError(f"style={options['style']} is unknown; choose one of {', '.join(STYLES)}")
    session = StreamingSession.from_pretrained(
        **options["model"], cache=options["cache"], video=options["video"], sampling=options["sampling"]
    )
    ticks = iter(track(range(options["duration_s"]), description="watching"))
    result = evaluate_pitch(
        session,
        seed=options["seed"],
        duration_s=options["duration_s"],
        style=STYLES[options["style"]],
        on_line=lambda *_: next(ticks, None),
    )
    print(result)
    if options["result_path"]:
        document = asdict(result)
        for report in (document["report"], *document["thirds"]):
            report["confusion"] = {f"{true} as {called}": n for (true, called), n in report["confusion"].items()}
        write_json(Path(options["result_path"]), document)
