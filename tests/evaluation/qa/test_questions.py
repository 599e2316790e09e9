"""Parsing of answers and accuracy: by hand, against plain means, and over arbitrary text."""

import math
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.evaluation.qa.questions import (
    AnsweredItem,
    Count,
    Item,
    MultipleChoice,
    YesNo,
    mean_of_means,
    tabulate,
)

CHOICE = MultipleChoice("Who scores?", ("The red team.", "A blue player", "Nobody", "Both of them"))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" b ", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("b)", "B"),
        ("B: A blue player", "B"),
        ("B. because blue has the ball", "B"),
        ("B because blue has the ball", "B"),
        ("B\nBlue has the ball.", "B"),
        ("**B**", "B"),
        ('"B"', "B"),
        ("[C]", "C"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is (B).", "B"),
        ("Answer: B", "B"),
        ("answer B", "B"),
        ("Option B", "B"),
        ("The best option is: B", "B"),
        ("The answer is option D.", "D"),
        ("My final answer is C, as nobody scores", "C"),
        ("The red team", "A"),
        ("the RED   team.", "A"),
        ("A blue player", "B"),
        ("A blue player.", "B"),
        ("The answer is a blue player", "B"),
        ("Answer: nobody", "C"),
    ],
)
def test_an_answer_that_names_an_option_is_read(answer, letter):
    assert CHOICE.parse(answer) == letter


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "E",
        "Z.",
        "A man in a coat",
        "A player of the blue team",
        "I do not know",
        "Both",
        "A or B",
        "A, B",
        "(A) and (B)",
        "A/B",
        "B & C",
        "not B",
        "The answer is not B",
        "The answer is unclear",
        "The answer is A man in a coat",
        "B-team",
        "D'accord",
        "Because",
        "The red team or nobody",
        "goal for red!",
        "...",
        "1",
        "BB",
        "B\tman",
    ],
)
def test_anything_else_is_invalid_and_no_letter(answer):
    assert CHOICE.parse(answer) is None


def test_an_option_that_stands_twice_is_known_by_its_letter_alone():
    twice = MultipleChoice("Which?", ("A bridge.", "A bridge.", "A house."))
    assert twice.parse("A bridge") is None
    assert twice.parse("B. A bridge.") == "B"
    assert twice.parse("A house") == "C"
    assert twice.parse("D") is None


def test_options_that_are_yes_and_no_or_numbers_are_read_as_their_letters():
    assert MultipleChoice("Is it?", ("yes", "no")).parse("No.") == "B"
    assert MultipleChoice("How many?", ("0", "1", "2", "3")).parse("2") == "C"


@given(st.text(max_size=60))
def test_whatever_is_written_is_one_of_the_options_or_invalid(answer):
    assert CHOICE.parse(answer) in (*"ABCD", None)
    assert YesNo("Is it?").parse(answer) in ("yes", "no", None)
    count = Count("How many?").parse(answer)
    assert count is None or str(int(count)) == count


@given(
    options=st.lists(st.text(string.ascii_lowercase + " ", min_size=2), min_size=2, max_size=6, unique=True),
    data=st.data(),
)
def test_each_option_is_read_by_its_letter_in_every_form(options, data):
    index = data.draw(st.integers(0, len(options) - 1))
    form = data.draw(
        st.sampled_from(["{}", "({})", "{}.", "{})", "The answer is {}.", "Option {}", "{}: " + options[index]])
    )
    letter = string.ascii_uppercase[index]
    assert MultipleChoice("Which?", tuple(options)).parse(form.format(letter)) == letter


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Y", "yes"),
        ("N", "no"),
        ("**No**", "no"),
        ("Yes, there is no doubt", "yes"),
        ("No, they are not", "no"),
        ("No they are not", "no"),
        ("The answer is yes.", "yes"),
        ("Answer: No", "no"),
        ("yes and no", None),
        ("Yes or no", None),
        ("yes/no", None),
        ("No idea", None),
        ("Nobody", None),
        ("none", None),
        ("Yesterday", None),
        ("I think so", None),
        ("", None),
    ],
)
def test_yes_and_no_are_parsed(answer, word):
    assert YesNo("Is it?").parse(answer) == word


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", "3"),
        ("03", "3"),
        ("3 times", "3"),
        ("They did it three times.", "3"),
        ("three (3)", "3"),
        ("The answer is 12.", "12"),
        ("none", None),
        ("2 or 3", None),
        ("1-0", None),
        ("2.5", None),
        ("", None),
    ],
)
def test_a_count_is_the_one_number_of_an_answer(answer, number):
    assert Count("How many?").parse(answer) == number


def test_a_prompt_tells_the_options_and_the_form_of_the_answer():
    lines = CHOICE.prompt.splitlines()
    assert lines[:3] == ["Who scores?", "A. The red team.", "B. A blue player"]
    assert "letter" in lines[-1]
    assert "Yes or No" in YesNo("Is it?").prompt
    assert "number" in Count("How many?").prompt


def answered(task: str, category: str, video: str, answer: str, truth: str = "A") -> AnsweredItem:
    item = Item(f"{task}{video}{answer}", task, category, Clip(Path(video), 0.0, 1.0), CHOICE, truth)
    return AnsweredItem(item, answer)


def mixed() -> list[AnsweredItem]:
    return [
        answered("EPM", "backward", "1.mp4", "A"),
        answered("EPM", "backward", "2.mp4", "B"),
        answered("EPM", "backward", "3.mp4", "what?"),
        answered("HLD", "backward", "1.mp4", "A"),
        answered("OCR", "real-time", "2.mp4", "(A)"),
        answered("OCR", "real-time", "3.mp4", "C"),
    ]


def test_averages_are_over_tasks_then_categories():
    table = tabulate("ovo", "ours", "streaming cache", mixed(), average_over="categories", num_resamples=200)
    assert [(task.name, task.share, task.num_questions, task.num_invalid) for task in table.tasks["backward"]] == [
        ("EPM", pytest.approx(1 / 3), 3, 1),
        ("HLD", 1.0, 1, 0),
    ]
    assert [category.share for category in table.categories] == pytest.approx([2 / 3, 1 / 2])
    assert table.overall.share == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert table.overall.num_invalid == 1
    assert table.overall.low <= table.overall.share <= table.overall.high


def test_averages_are_over_questions_where_the_benchmark_has_it_so():
    table = tabulate("sb", "ours", "streaming cache", mixed(), average_over="questions", num_resamples=200)
    assert table.overall.share == pytest.approx(3 / 6)
    assert [category.share for category in table.categories] == pytest.approx([2 / 4, 1 / 2])


@pytest.mark.parametrize("average_over", ["categories", "questions"])
def test_the_table_says_how_it_was_answered_and_what_is_in_the_average(average_over):
    text = str(tabulate("ovo", "ours", "offline generation", mixed(), average_over=average_over, num_resamples=50))
    assert "ours (offline generation)" in text.splitlines()[0]
    assert text.splitlines()[-1].endswith("backward, real-time")
    assert "1 invalid" in text


def test_one_video_has_no_interval_and_the_document_says_null():
    table = tabulate("ovo", "ours", "x", [answered("EPM", "backward", "1.mp4", "A")] * 3, average_over="categories")
    assert math.isnan(table.overall.low)
    assert table.as_document()["overall"] == {
        "name": "all", "num_questions": 3, "num_invalid": 0, "share": 1.0, "low": None, "high": None
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=30))
def test_a_mean_of_means_is_that_of_plain_lists(rows):
    by_task = {}
    for category, task, is_correct in rows:
        by_task.setdefault(category, {}).setdefault(task, []).append(is_correct)
    means = [sum(sum(t) / len(t) for t in tasks.values()) / len(tasks) for tasks in by_task.values()]
    assert mean_of_means(np.array(rows, dtype=float)) == pytest.approx(sum(means) / len(means))
