"""Stream a benchmark through the session and score it: ``python scripts/evaluate.py seed=7``, ``--help`` for more."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command_line import CommandLine, run

COMMAND_LINE = CommandLine("evaluate", plain="benchmark", text=("result_path",))


def main(options: dict[str, Any]):
    """Watch a match that no training saw, print the score, and keep it as JSON where ``result_path`` names a file."""
    from rich.progress import track

    from streamingvlm import StreamingSession
    from streamingvlm.errors import ConfigError
    from streamingvlm.evaluation.pitch import evaluate_pitch
    from streamingvlm.pitch.styles import STYLES

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
        Path(options["result_path"]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    run(main, COMMAND_LINE)
