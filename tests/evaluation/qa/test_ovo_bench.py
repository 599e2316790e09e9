"""OVO-Bench in its published layout: questions, their times, and errors for other layouts."""

import json
from pathlib import Path

import pytest
from published_layouts import ovo_bench_list

from streamingvlm.errors import ConfigError, DataError
from streamingvlm.evaluation.qa.ovo_bench import CATEGORIES, read_ovo_bench

ROOT = Path("/videos")


@pytest.fixture
def write(tmp_path):
    def write_list(entries) -> Path:
        path = tmp_path / "ovo_bench_new.json"
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        return path

    return write_list


def test_a_clip_ends_when_its_question_is_asked(write):
    items = read_ovo_bench(write(ovo_bench_list()), ROOT)
    asked = {item.name: (item.task, item.clip.start_s, item.clip.end_s, item.truth) for item in items}
    assert asked == {
        "0": ("EPM", 0.0, 5.0, "A"),
        "7": ("HLD", 0.0, 4.0, "B"),
        "8": ("OCR", 0.0, 2.04, "A"),
        "9": ("OJR", 0.0, 0.03, "A"),
        "20:0": ("CRR", 0.0, 1.0, "no"),
        "20:1": ("CRR", 0.0, 4.0, "yes"),
        "21:0": ("SSR", 0.0, 2.0, "yes"),
        "21:1": ("SSR", 0.0, 5.0, "no"),
        "22:0": ("REC", 0.0, 2.0, "1"),
        "22:1": ("REC", 0.0, 6.0, "3"),
    }
    assert {item.clip.video for item in items} == {ROOT / "clips/a.mp4", ROOT / "clips/b.mp4"}


def test_each_task_is_in_its_category_and_says_what_it_asks(write):
    items = {item.task: item for item in read_ovo_bench(write(ovo_bench_list()), ROOT)}
    assert all(item.task in CATEGORIES[item.category] for item in items.values())
    assert {item.category for item in items.values()} == set(CATEGORIES)
    assert "A. red\nB. blue" in items["EPM"].question.prompt
    assert "kicking the ball" in items["REC"].question.prompt
    assert "score" in items["SSR"].question.prompt
    assert "What does the keeper do?" in items["CRR"].question.prompt
    assert "She saves it" not in items["CRR"].question.prompt, "the answer is not told"
    assert sum(map(len, CATEGORIES.values())) == 12


def test_tasks_and_numbers_of_entries_can_be_chosen(write):
    path = write([*ovo_bench_list(), {**ovo_bench_list()[0], "id": 99}])
    assert [item.name for item in read_ovo_bench(path, ROOT, tasks=["EPM", "CRR"])] == ["0", "20:0", "20:1", "99"]
    assert [item.name for item in read_ovo_bench(path, ROOT, tasks=["EPM"], num_entries=1)] == ["0"]
    assert len(read_ovo_bench(path, ROOT, num_entries=1)) == 10
    with pytest.raises(ConfigError, match="XYZ is unknown"):
        read_ovo_bench(path, ROOT, tasks=["XYZ"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ABC"}, "of task 'ABC'"),
        ({"options": None}, "realtime, question, options and gt"),
        ({"gt": 2}, "realtime, question, options and gt"),
        ({"gt": "A"}, "realtime, question, options and gt"),
        ({"realtime": "soon"}, "realtime, question"),
        ({"video": 3}, "expected id, video"),
        ({"task": "REC"}, "activity and test_info"),
        ({"task": "SSR", "test_info": [{"realtime": 1, "type": 1}]}, "realtime, step and type"),
        ({"task": "CRR", "test_info": [{"realtime": 1, "type": 2}]}, "realtime and type"),
    ],
)
def test_an_entry_of_another_layout_is_named_in_one_line(write, change, message):
    entries = ovo_bench_list()
    with pytest.raises(DataError, match=message) as error:
        read_ovo_bench(write([entries[1], {**entries[0], **change}]), ROOT)
    assert "entry 1" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no list"),
        ("nothing", "not JSON"),
        ("[]", "no question"),
        ("[1]", "of task None"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_a_file_of_another_layout_is_named_in_one_line(write, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_ovo_bench(write(text), ROOT)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there_or_leads_elsewhere_or_doubles_is_refused(write, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_ovo_bench(tmp_path / "absent.json", ROOT)
    with pytest.raises(DataError, match="leads out of"):
        read_ovo_bench(write([{**ovo_bench_list()[0], "video": "../../etc/passwd"}]), ROOT)
    with pytest.raises(DataError, match="an id twice"):
        read_ovo_bench(write([ovo_bench_list()[0]] * 2), ROOT)
