"""OVO-Bench: ask one candidate about videos while they run, and print how often it is right, by task and category."""

from typing import Any

from qa import ask_and_tell, question_file

from streamingvlm.evaluation.qa.ovo_bench import read_ovo_bench


def evaluate(options: dict[str, Any]):
    """Print the table; averages are over tasks, then over categories, as the benchmark publishes them."""
    path, video_root = question_file(options)
    items = read_ovo_bench(path, video_root, tasks=options["tasks"], num_entries=options["num_entries"])
    ask_and_tell(items, options, average_over="categories")
