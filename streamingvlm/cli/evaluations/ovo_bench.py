"""OVO-Bench: questions about a running video; accuracy by task and category."""

from typing import Any

from streamingvlm.cli.qa import answer_and_report, question_file
from streamingvlm.evaluation.qa.ovo_bench import read_ovo_bench


def evaluate(options: dict[str, Any]):
    """Print the table. Averages are over tasks, then over categories, as in the benchmark."""
    path, video_root = question_file(options)
    items = read_ovo_bench(path, video_root, tasks=options["tasks"], num_entries=options["num_entries"])
    answer_and_report(items, options, average_over="categories")
