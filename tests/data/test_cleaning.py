"""Cleaning through a real server, including a process that is killed half way."""

import json
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from chat_server import ChatServer
from hypothesis import given
from hypothesis import strategies as st
from published_layouts import steady_words

from streamingvlm.data.cleaning import Cleaner, CleaningConfig, group_sentences, read_verdicts, split_sentences
from streamingvlm.data.transcript import Transcript, Word
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig
from streamingvlm.errors import ConfigError, EndpointError

ROOT = Path(__file__).parents[2]
TEN_MINUTES = Transcript(tuple(steady_words(600)))  # five segments of 300 sentences, each a word


def numbered(body):
    """The sentences that a request asks about."""
    return [line.partition(". ")[2] for line in body["messages"][-1]["content"].splitlines()]


def verdicts(decide):
    """A model that decides about each sentence by its text."""

    def reply(body, num_before):
        entries = [{"number": number, **decide(text)} for number, text in enumerate(numbered(body), 1)]
        return json.dumps({"sentences": entries})

    return reply


keep_all = verdicts(lambda text: {"action": "keep"})


@pytest.fixture
def clean(tmp_path):
    def cleaned(reply, transcript, **settings):
        with ChatServer(reply) as server:
            config = EndpointConfig("m", server.url, api_key_env=None, max_attempts=2, **settings)
            cleaner = Cleaner(ChatEndpoint(config, tmp_path / "answers"), CleaningConfig())
            [after] = cleaner.clean([transcript])
            return after, cleaner, server

    return cleaned


def said(*texts, word_s=0.5):
    words = " ".join(texts).split()
    return Transcript(tuple(Word(i * word_s, (i + 1) * word_s, word) for i, word in enumerate(words)))


def test_sentences_are_kept_edited_or_deleted(clean):
    def decide(text):
        if "advert" in text:
            return {"action": "delete"}
        return {"action": "edit", "text": "Messi shoots."} if "messy" in text else {"action": "keep"}

    before = said("He runs.", "Here is messy he shoots.", "An advert for shoes.", "Goal!")
    after, cleaner, _ = clean(verdicts(decide), before)
    assert [word.text for word in after.words] == ["He", "runs.", "Messi", "shoots.", "Goal!"]
    assert after.words[:2] == before.words[:2]
    assert (after.words[2].start_s, after.words[3].end_s) == (1.0, 3.5)
    assert after.words[-1] == before.words[-1]
    assert {name: num for name, num in cleaner.counts.items() if num} == {
        "sentences_keep": 2,
        "sentences_edit": 1,
        "sentences_delete": 1,
    }


def test_a_model_that_keeps_all_changes_nothing(clean):
    after, cleaner, server = clean(keep_all, TEN_MINUTES)
    assert after == TEN_MINUTES
    assert len(server.requests) == 5
    assert cleaner.counts["sentences_keep"] == 1500


def test_short_transcripts_are_requested_in_parallel_and_keep_their_order(tmp_path):
    together = threading.Barrier(4)

    def waits_for_three_others(body, num_before):
        together.wait(20)
        return keep_all(body, num_before)

    transcripts = [said(f"Sentence {number}.") for number in range(12)]
    with ChatServer(waits_for_three_others) as server:
        config = EndpointConfig("m", server.url, api_key_env=None, num_parallel=4)
        cleaner = Cleaner(ChatEndpoint(config, tmp_path), CleaningConfig())
        assert list(cleaner.clean(transcripts)) == transcripts


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot do that.",
        '{"sentences": []}',
        '{"sentences": [{"number": 2, "action": "keep"}]}',
        '{"sentences": [{"number": 1, "action": "improve"}]}',
        '{"sentences": [{"number": 1, "action": "edit", "text": " "}]}',
        '{"sentences": [{"number": 1, "action": "edit"}]}',
        '{"sentences": [7]}',
        '{"sentences": [{"number": 1, "action": "ke',
        '{"sentences":' * 100_000 + "}",
    ],
)
def test_a_segment_without_a_valid_answer_stays_unchanged_and_is_counted(clean, answer):
    before = said("One sentence.")
    after, cleaner, server = clean(lambda *_: answer, before)
    assert after == before
    assert len(server.requests) == 2
    assert cleaner.counts["segments_unchanged"] == 1
    assert cleaner.usage.num_malformed == 2


def test_json_may_be_surrounded_by_text():
    answer = 'Here you are:\n```json\n{"sentences": [{"number": 1, "action": "delete"}]}\n```'
    assert read_verdicts(1)(answer) == [("delete", "")]


def test_requests_are_retried_after_429_500_and_a_lost_connection(clean):
    failures = [429, 500, None]

    def reply(body, num_before):
        return failures[num_before] if num_before < 3 else keep_all(body, num_before)

    after, _, server = clean(reply, TEN_MINUTES, num_parallel=5)
    assert after == TEN_MINUTES
    assert len(server.requests) == 4 * 5


def test_a_rejected_request_stops_and_earlier_answers_are_cached(clean):
    def reply(body, num_before):
        return 401 if "w1000." in numbered(body) else keep_all(body, num_before)

    with pytest.raises(EndpointError, match="401"):
        clean(reply, TEN_MINUTES, num_parallel=1)
    after, _, server = clean(keep_all, TEN_MINUTES)
    assert after == TEN_MINUTES
    assert len(server.requests) <= 2
    assert any("w1000." in numbered(body) for body in server.requests)


def test_the_estimate_is_close_to_the_actual_requests(tmp_path):
    # Every word is distinct: of two identical requests in flight, the second might or might not hit the cache.
    words = tuple(Word(w.start_s, w.end_s, f"word{i}" if i % 12 else "end.") for i, w in enumerate(TEN_MINUTES.words))
    with ChatServer(keep_all) as server:
        config = EndpointConfig("m", server.url, api_key_env=None, usd_per_million_in=1.0, usd_per_million_out=4.0)
        cleaner = Cleaner(ChatEndpoint(config, tmp_path), CleaningConfig())
        estimate = cleaner.estimate([Transcript(words)])
        assert server.requests == []
        list(cleaner.clean([Transcript(words)]))
        sent = sum(len(message["content"]) for body in server.requests for message in body["messages"])
    assert estimate.num_requests == len(server.requests) == 5
    assert estimate.num_tokens_in == pytest.approx(sent / 4, rel=0.01)
    assert estimate.cost_usd == pytest.approx((estimate.num_tokens_in + 4 * estimate.num_tokens_out) / 1e6)
    assert "USD" in str(estimate)
    again = cleaner.estimate([Transcript(words)])
    assert (again.num_requests, again.num_cached, again.cost_usd) == (0, 5, 0.0)


CLEAN_IN_A_PROCESS = """
import sys
sys.path.insert(0, sys.argv[3])
from published_layouts import steady_words
from streamingvlm.data.cleaning import Cleaner, CleaningConfig
from streamingvlm.data.transcript import Transcript
from streamingvlm.endpoint import ChatEndpoint, EndpointConfig

endpoint = ChatEndpoint(EndpointConfig("m", sys.argv[1], api_key_env=None, num_parallel=1), sys.argv[2])
cleaner = Cleaner(endpoint, CleaningConfig())
print(*(len(clean.words) for clean in cleaner.clean([Transcript(tuple(steady_words(600)))])))
"""


def test_after_a_kill_no_answered_segment_is_requested_again(tmp_path):
    is_reached, is_dead = threading.Event(), threading.Event()

    def hangs_at_the_fourth(body, num_before):
        if len(server.requests) == 4:
            is_reached.set()
            is_dead.wait(180)
            return None
        return keep_all(body, num_before)

    with ChatServer(hangs_at_the_fourth) as server:
        command = [sys.executable, "-c", CLEAN_IN_A_PROCESS, server.url, str(tmp_path), str(ROOT / "tests")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert is_reached.wait(180)
            process.send_signal(signal.SIGKILL)
        is_dead.set()
        answered = server.requests[:3]
        again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert again.stdout == "1500\n", again.stderr
    assert len(server.requests) == 4 + 2
    assert [body for body in server.requests[4:] if body in answered] == []


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.sampled_from(["a", "b.", "c?", "d!”", "e…", "3.5"])), max_size=200),
    st.floats(1, 200),
)
def test_sentences_and_segments_contain_every_word(pace, segment_s):
    words, end_s = [], 0.0
    for gap_s, text in pace:
        words.append(Word(end_s + gap_s, end_s + gap_s + 0.2, text))
        end_s = words[-1].end_s
    found = list(split_sentences(words))
    assert [word for sentence in found for word in sentence] == words
    assert all(len(sentence) <= 40 for sentence in found)
    assert all(b.start_s - a.end_s <= 2 + 1e-9 for sentence in found for a, b in pairwise(sentence))
    grouped = group_sentences(found, segment_s)
    assert [sentence for group in grouped for sentence in group] == found
    assert all(g[-1][0].start_s - g[0][0].start_s < segment_s for g in grouped)


def test_a_sentence_ends_at_its_full_stop():
    texts = [" ".join(w.text for w in s) for s in split_sentences(said("It is 3.5 m.", "“Goal!”", "and so on").words)]
    assert texts == ["It is 3.5 m.", "“Goal!”", "and so on"]


def test_a_segment_length_of_zero_is_rejected():
    with pytest.raises(ConfigError, match=r"cleaning\.segment_s"):
        CleaningConfig(segment_s=0)
