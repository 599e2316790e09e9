"""StreamingBench, real-time part: ask one candidate about videos while they run, and print how often it is right."""

from typing import Any

from qa import ask_and_tell, question_file

from streamingvlm.evaluation.qa.streaming_bench import read_streaming_bench


def evaluate(options: dict[str, Any]):
    """Print the table; the average is over questions, as the benchmark publishes it."""
    path, video_root = question_file(options)
    items = read_streaming_bench(path, video_root, context_s=options["context_s"], num_entries=options["num_entries"])
    ask_and_tell(items, options, average_over="questions")
