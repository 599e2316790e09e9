"""Judging by a real server with a known rule, by a failing server, and in a process that is killed."""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from chat_server import ChatServer
from hypothesis import given, settings
from hypothesis import strategies as st

from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import EndpointError
from streamingvlm.evaluation.llm_judge.judging import (
    MAX_CHARACTERS,
    NO_VOTE,
    Comparison,
    Judge,
    Verdict,
    read_vote,
    win_rate,
    win_rates_by_part,
)

ROOT = Path(__file__).parents[3]
_SHOWN = re.compile(r"### Reference\n(.*)\n\n### Commentary A\n(.*)\n\n### Commentary B\n(.*)\n\n### Your", re.DOTALL)


def shown(body):
    """The reference and the two texts, as a judge sees them."""
    return _SHOWN.search(body["messages"][-1]["content"]).groups()


def prefers_common_words(body, num_before=0):
    """The letter of the text that shares more words with the reference; the first where both share as many."""
    reference, a, b = (set(text.split()) for text in shown(body))
    return "A" if len(a & reference) >= len(b & reference) else "B"


def item(number, ours, theirs, reference="the red side scores", group=None):
    return Comparison(f"i{number}", group or f"video{number % 3}", f"{reference} {number}", ours, theirs)


OURS_BETTER = ("the red side attacks", "nothing of note")
THEIRS_BETTER = ("it rains", "the red side")
ALIKE = ("red", "side")
# 6 won, 3 lost, 3 decided by the order: 15 of 24 votes.
TWELVE = [item(number, *(6 * [OURS_BETTER] + 3 * [THEIRS_BETTER] + 3 * [ALIKE])[number]) for number in range(12)]


@pytest.fixture
def judge(tmp_path):
    def opened(server, **asked):
        config = EndpointConfig("m", server.url, api_key_env=None, **{"max_retries": 4, "timeout_s": 20, **asked})
        return Judge(ChatEndpoint(config, tmp_path / "answers"), "Which is better?")

    return opened


def swapped(comparisons):
    return [Comparison(c.name, c.group, c.reference, c.text_b, c.text_a) for c in comparisons]


def test_a_judge_of_a_known_rule_gives_the_win_rate_of_that_rule(judge):
    with ChatServer(prefers_common_words) as server:
        verdicts = list(judge(server).judge(TWELVE))
    assert [verdict.name for verdict in verdicts] == [comparison.name for comparison in TWELVE]
    result = win_rate(verdicts)
    assert (result.num_wins, result.num_losses, result.num_ties, result.num_invalid) == (15, 9, 3, 0)
    assert result.rate == 15 / 24
    assert (result.num_comparisons, result.num_groups) == (12, 3)
    assert 0 <= result.low <= result.rate <= result.high <= 1
    assert len(server.requests) == 24


def test_each_question_is_asked_in_both_orders_at_temperature_0(judge):
    with ChatServer(prefers_common_words) as server:
        list(judge(server).judge(TWELVE[:1]))
    assert [shown(body)[1:] for body in server.requests] == [OURS_BETTER, OURS_BETTER[::-1]]
    assert {body["temperature"] for body in server.requests} == {0.0}
    assert {body["messages"][0]["content"] for body in server.requests} == {"Which is better?"}


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_always_names_one_letter_gives_half(judge, letter):
    with ChatServer(lambda *_: letter) as server:
        result = win_rate(list(judge(server).judge(TWELVE)))
    assert (result.rate, result.low, result.high, result.num_ties) == (0.5, 0.5, 0.5, 12)


def by_lot(seed):
    """A judge without reason: the same question gets the same answer, which may be none."""

    def reply(body, num_before):
        return "AB?"[hashlib.sha256(f"{seed} {shown(body)}".encode()).digest()[0] % 3]

    return reply


@settings(max_examples=12)
@given(st.integers(), st.lists(st.tuples(*[st.text("ab ", max_size=6)] * 2), min_size=1, max_size=6))
def test_exchanging_the_candidates_gives_the_rest(tmp_path_factory, seed, texts):
    comparisons = [item(number, *pair) for number, pair in enumerate(texts)]
    with ChatServer(by_lot(seed)) as server:
        endpoint = ChatEndpoint(EndpointConfig("m", server.url, api_key_env=None), tmp_path_factory.mktemp("answers"))
        ours, theirs = (
            win_rate(list(Judge(endpoint, "").judge(c)), num_resamples=50) for c in (comparisons, swapped(comparisons))
        )
    assert len(server.requests) <= 2 * len(comparisons)
    assert (ours.num_wins, ours.num_losses) == (theirs.num_losses, theirs.num_wins)
    assert (ours.num_invalid, ours.num_ties) == (theirs.num_invalid, theirs.num_ties)
    if ours.num_wins + ours.num_losses:
        assert ours.rate == pytest.approx(1 - theirs.rate)
        rest = (1 - theirs.high, 1 - theirs.low)
        assert (ours.low, ours.high) == pytest.approx(rest, nan_ok=True)


@pytest.mark.parametrize(
    "answer, vote",
    [("A", "A"), ("b", "B"), (" **B**.\n", "B"), ("(A)", "A"), ('"A"', "A")]
    + [(text, NO_VOTE) for text in ("A tie", "AB", "A or B", "C", "Both", "-", "Answer: A", "BA")],
)
def test_a_vote_is_one_letter(answer, vote):
    assert read_vote(answer) == vote


def test_no_answer_is_not_even_no_vote():
    with pytest.raises(ValueError, match="empty"):
        read_vote(" \n")


def test_an_invalid_vote_is_counted_for_neither_side(judge):
    def undecided_about_the_first(body, num_before):
        return "Both are fine." if shown(body)[0].endswith(" 0") else prefers_common_words(body)

    with ChatServer(undecided_about_the_first) as server:
        verdicts = list(judge(server).judge(TWELVE))
        again = list(judge(server).judge(TWELVE))
    result = win_rate(verdicts)
    assert verdicts[0].votes == (None, None)
    assert (result.num_wins, result.num_losses, result.num_invalid) == (13, 9, 2)
    assert result.rate == 13 / 22
    assert again == verdicts
    assert len(server.requests) == 24
    assert "2 invalid votes" in str(result)


def test_a_judge_that_never_votes_has_no_win_rate(judge):
    with ChatServer(lambda *_: "I cannot say.") as server:
        result = win_rate(list(judge(server).judge(TWELVE)))
    assert math.isnan(result.rate) and result.num_invalid == 24
    assert str(result) == "no win rate: none of 24 votes is valid"


def test_texts_are_cut(judge):
    long = Comparison("long", "v", "r" * 9000, "a" * 8001, "b" * MAX_CHARACTERS)
    with ChatServer(lambda *_: "A") as server:
        list(judge(server).judge([long]))
    assert shown(server.requests[0]) == ("r" * 8000, "a" * 8000, "b" * 8000)


def test_a_judge_that_is_slow_busy_broken_and_cut_off_in_turn_is_outlasted(judge):
    failures = [429, 500, None, b"not json", b'{"choices": []}', 503]

    def reply(body, num_before):
        # Every question fails once or twice, each in its own way, some after a while.
        lot = hashlib.sha256(repr(shown(body)).encode()).digest()
        time.sleep(0.02 * (lot[1] % 3))
        if num_before <= lot[2] % 2:
            return failures[(lot[0] + num_before) % len(failures)]
        return prefers_common_words(body)

    with ChatServer(reply) as server:
        result = win_rate(list(judge(server).judge(TWELVE)))
    assert result.rate == 15 / 24
    assert len(server.requests) > 24
    assert set(Counter(map(shown, server.answered)).values()) == {1}
    assert len(server.answered) == 24


def test_an_endpoint_that_is_down_is_reported_in_one_line_and_nothing_is_lost(judge):
    def down_after_the_tenth(body, num_before):
        return prefers_common_words(body) if len(server.requests) <= 10 else 500

    one_line = pytest.raises(EndpointError, match="run the same command again later")
    with ChatServer(down_after_the_tenth) as server, one_line as caught:
        list(judge(server, max_retries=0, num_parallel=2).judge(TWELVE))
    assert "\n" not in str(caught.value)
    first = server.answered
    with ChatServer(prefers_common_words) as server:
        result = win_rate(list(judge(server).judge(TWELVE)))
    assert result.rate == 15 / 24
    assert len(first) + len(server.answered) == 24


def test_the_estimate_comes_before_and_is_near_what_is_asked(judge):
    prices = {"usd_per_million_in": 2.0, "usd_per_million_out": 8.0}
    with ChatServer(prefers_common_words) as server:
        estimate = judge(server, **prices).estimate(TWELVE)
        assert server.requests == []
        list(judge(server).judge(TWELVE))
        sent = sum(len(message["content"]) for body in server.requests for message in body["messages"])
        again = judge(server, **prices).estimate(TWELVE)
    assert (estimate.num_requests, estimate.num_cached) == (24, 0)
    assert estimate.num_tokens_in == pytest.approx(sent / 4, rel=0.02)
    assert estimate.cost_usd == pytest.approx((2 * estimate.num_tokens_in + 8 * 24) / 1e6)
    assert str(estimate).startswith("judging will ask 24 times")
    assert (again.num_requests, again.num_cached, again.cost_usd) == (0, 24, 0.0)


JUDGE_IN_A_PROCESS = """
import json, sys
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.evaluation.llm_judge.judging import Comparison, Judge, win_rate

endpoint = ChatEndpoint(EndpointConfig("m", sys.argv[1], api_key_env=None, num_parallel=1), sys.argv[2])
comparisons = [Comparison(**fields) for fields in json.loads(sys.argv[3])]
print(win_rate(list(Judge(endpoint, "").judge(comparisons)), num_resamples=1).rate)
"""


def test_after_a_kill_every_item_has_been_judged_exactly_once(tmp_path):
    is_reached, is_dead = threading.Event(), threading.Event()

    def hangs_at_the_ninth(body, num_before):
        if len(server.requests) == 9:
            is_reached.set()
            is_dead.wait(180)
            return None
        return prefers_common_words(body)

    with ChatServer(hangs_at_the_ninth) as server:
        comparisons = json.dumps([asdict(comparison) for comparison in TWELVE])
        command = [sys.executable, "-c", JUDGE_IN_A_PROCESS, server.url, str(tmp_path / "answers"), comparisons]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert is_reached.wait(180)
            process.send_signal(signal.SIGKILL)
        is_dead.set()
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.stdout == f"{15 / 24}\n", again.stderr
    assert len(server.answered) == 24
    assert set(Counter(map(shown, server.answered)).values()) == {1}


def test_a_win_rate_is_printed_with_its_interval_if_there_is_one():
    verdicts = [Verdict("1", "a", ("A", "A")), Verdict("2", "b", ("A", "B")), Verdict("3", "b", ("B", None))]
    text = str(win_rate(verdicts))
    assert text.startswith("win rate 60.00% (95 % interval 33.33% to 100.00%): 3 of 5 votes, 3 comparisons")
    assert "1 ties, 1 invalid" in text
    assert "interval" not in str(win_rate(verdicts[:1]))


def test_parts_of_the_videos_are_counted_apart_and_what_stands_nowhere_in_none():
    won, lost = ("A", "A"), ("B", "B")
    places = [(0.0, won), (0.19, lost), (0.2, won), (0.61, lost), (1.0, won), (None, lost)]
    verdicts = [Verdict(str(n), "v", votes, position) for n, (position, votes) in enumerate(places)]
    parts = win_rates_by_part(verdicts)
    assert [part.num_comparisons for part in parts] == [2, 1, 0, 1, 1]
    assert [part.rate for part in parts if part.num_comparisons] == [0.5, 1.0, 0.0, 1.0]
    assert math.isnan(parts[2].rate)


@pytest.mark.parametrize(
    "answer, vote",
    [
        ('{"winner": "B"}', "B"),
        ('```json\n{"reason": "closer", "verdict": "a"}\n```', "A"),
        ("<think>A or B? A is closer.</think>\n\nB", "B"),
        ('{"first": "A", "second": "B"}', "no vote"),
        ("<think>A is", "no vote"),
    ],
)
def test_a_judge_may_think_first_or_answer_in_json(answer, vote):
    assert read_vote(answer) == vote
