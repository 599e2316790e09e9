"""StreamingBench, real-time part: questions about a running video; accuracy by task."""

from typing import Any

from streamingvlm.cli.qa import answer_and_report, question_file
from streamingvlm.evaluation.qa.streaming_bench import read_streaming_bench


def evaluate(options: dict[str, Any]):
    """Print the table. The average is over questions, as in the benchmark."""
    path, video_root = question_file(options)
    items = read_streaming_bench(path, video_root, context_s=options["context_s"], num_entries=options["num_entries"])
    answer_and_report(items, options, average_over="questions")
