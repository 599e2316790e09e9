"""The performance page: goals and their records, the newest of each part, and the committed page itself."""

import json
import shutil
from pathlib import Path

import pytest

from streamingvlm.benchmark.goals import GOALS, goals_table
from streamingvlm.benchmark.mode_summary import STAGES, percentiles
from streamingvlm.benchmark.performance_page import read_records, write_page
from streamingvlm.benchmark.record_tables import low_precision_tables, tables_of
from streamingvlm.errors import DataError

ROOT = Path(__file__).parents[2]
LARGE = {"name": "7b", "dtype": "bfloat16", "quantization": None}


def record(date="2026-11-22T10:00:00+00:00", device="NVIDIA H100 80GB HBM3", model=LARGE, width=1280, **parts):
    return {
        "benchmark": "streaming",
        "date": date,
        "machine": {"device": device, "torch": "2.11.0", "num_threads": 8},
        "commit": "0123456789abcdef",
        "settings": {
            "model": model,
            "footage": {"source": "noise", "width": width, "height": 720},
            "video": {"fps": 2.0},
        },
        **parts,
    }


def mode(turn_s=0.08, stop_reason=""):
    times = {name: percentiles([turn_s]) for name in ("turn", "token", "inter_token", *STAGES)}
    return {
        "stop_reason": stop_reason,
        "num_turns": 600,
        "cache_tokens": 13_000,
        "cuda_peak_mb": 20_000.0,
        "resident_peak_mb": 900.0,
        "whole": times,
        "first_minute": times,
        "last_minute": times,
        "roofline": {"vision_s": 0.01, "prefill_s": 0.02, "token_s": 0.005, "turn_s": 0.06, "turn_share": 0.75},
    }


def modes(**changed):
    return {"ceilings": {"flop_per_s": 6e14, "bytes_per_s": 3e12}, "modes": {"streaming": mode(**changed)}}


def found(highest, window=None):
    trials = [{"load": highest, "passed": True, "stop_reason": "", "turn": percentiles([0.5])}]
    return {"highest": highest, "is_limit_of_search": False, "trials": trials, **({"window": window} if window else {})}


def measured(records):
    return [row[2] for row in goals_table(records).rows]


def test_a_goal_that_was_not_measured_shows_its_command():
    assert measured([]) == ["not measured"] * len(GOALS)
    other = record(device="NVIDIA L4", **modes()), record(model={**LARGE, "quantization": "int8"}, **modes())
    assert measured(other) == ["not measured"] * len(GOALS)
    assert goals_table([]).rows[6][4] == "`streamingvlm bench model=7b workload=72_tokens parts=[streams]`"


def test_a_record_measures_its_own_goals_only():
    records = [
        record(**modes()),
        record(frames_per_s=found(44, "tokens"), streams=found(22)),
        record(width=252, streams=found(210)),
    ]
    assert measured(records) == ["80", "80", "80", "75", "44", "22", "210", *["not measured"] * 2]


def test_a_mode_that_stopped_early_measures_no_goal():
    assert measured([record(**modes(stop_reason="out of memory after 9 turns: ..."))])[:4] == ["not measured"] * 4


def test_the_newest_record_counts():
    old, new = record(**modes(turn_s=0.2)), record(date="2026-12-01T00:00:00+00:00", **modes(turn_s=0.1))
    assert goals_table([new, old]).rows[0][2:4] == ["100", "2026-12-01"]


def test_the_speedup_of_an_engine_has_a_goal_per_number_of_threads():
    cases = [
        {
            "num_streams": streams,
            "num_threads": threads,
            "ratios": [1.0, streams / 2, 9.0],
            "sequential_s": [1],
            "batched_s": [1],
        }
        for threads in (1, 2)
        for streams in (2, 4)
    ]
    embedded = record(
        device="x86_64", model={"name": "pitch", "dtype": "float32", "quantization": None}, batching=cases
    )
    assert measured([embedded])[-2:] == ["2.00", "2.00"]


def test_the_page_has_a_section_per_machine_and_model_with_the_newest_of_each_part(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for number, kept in enumerate(
        (
            record(**modes(turn_s=0.2)),
            record(date="2026-12-01T00:00:00+00:00", **modes(turn_s=0.1)),
            record(streams=found(22)),
            {"benchmark": "training", "date": "2026-12-02T00:00:00+00:00"},
        )
    ):
        (folder / f"{number}.json").write_text(json.dumps(kept))
    (folder / "1.png").write_bytes(b"")
    page = tmp_path / "docs" / "performance.md"
    write_page(read_records(folder), page)
    text = page.read_text()
    assert text.count("### 7b, bfloat16, on NVIDIA H100 80GB HBM3: noise of 1280x720 at 2 frames/s") == 1
    assert "[1.json](../benchmarks/1.json): 2026-12-01, 0123456789, torch 2.11.0, 8 threads." in text
    assert "![Turn latency per token along the stream](../benchmarks/1.png)" in text
    assert "[0.json]" not in text and "Highest load: 22 streams" in text


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"other": 1}'])
def test_a_file_that_is_not_a_record_is_named(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(DataError, match=r"odd\.json is not the record of a benchmark"):
        read_records(tmp_path)


def test_a_mode_without_turns_has_a_row_with_its_reason():
    table = next(iter(tables_of({"modes": {"full": {"stop_reason": "out of memory after 0 turns: x"}}})))
    assert table.rows == [["full", *["-"] * 4, "out of memory after 0 turns: x"]]
    assert table.markdown().splitlines()[1] == "| --- " * 6 + "|"


def test_a_low_precision_case_that_cannot_run_has_its_error_as_outcome():
    run = {"macro_f1": 1.0, "right_share": 0.9, "same_lines": 1.0, "first_difference_s": None, "turn_p50_s": 0.06}
    cases = {
        "baseline": {"weight_mb": 20.0, "cache_bytes_per_token": 12288, "runs": {"1007": run, "2718": run}},
        "fp8": {"error": "no numbers"},
    }
    size, first_match, second_match = low_precision_tables(cases)
    assert size.rows == [["baseline", "20.0", "12288", "completed"], ["fp8", "-", "-", "no numbers"]]
    assert [table.title.rpartition(" ")[2] for table in (first_match, second_match)] == ["1007", "2718"]
    assert first_match.rows == second_match.rows == [["baseline", "1.000", "0.900", "1.000", "60"]]


def test_every_table_has_at_most_six_columns_with_one_number_a_cell():
    records = read_records(ROOT / "benchmarks").values()
    for table in [goals_table(records), *(table for record in records for table in tables_of(record))]:
        assert len(table.columns) <= 6, table.title
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
        assert not [cell for row in table.rows for cell in row if " / " in cell], table.title


def test_the_committed_page_is_what_the_records_give(tmp_path):
    page = ROOT / "docs" / "performance.md"
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copy(page, tmp_path / "docs")
    write_page(read_records(tmp_path / "benchmarks"), tmp_path / "docs" / "performance.md")
    assert (tmp_path / "docs" / "performance.md").read_text() == page.read_text()
