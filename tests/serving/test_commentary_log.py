"""The commentary log: every line once and in order, for fast and slow listeners."""

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.serving.commentary_log import CommentaryLog


async def hear(log, after, pace):
    """All events of a listener that is slow at random."""
    heard = []
    async for event in log.follow(after):
        heard.append(event)
        for _ in range(pace.randrange(4)):
            await asyncio.sleep(0)
    return heard


@given(st.integers(0, 60), st.integers(1, 20), st.lists(st.integers(0, 70), min_size=1, max_size=5), st.integers())
def test_every_listener_gets_each_line_once_or_a_gap(num_lines, max_lines, afters, seed):
    async def session():
        pace = random.Random(seed)
        log = CommentaryLog(max_lines)
        listeners = [asyncio.ensure_future(hear(log, after, pace)) for after in afters]
        for number in range(num_lines):
            if pace.random() < 0.5:
                log.publish_partial({"text": "half"})
                await asyncio.sleep(0)
            log.publish_line({"text": str(number + 1)}, {"turn": number + 1})
            if pace.random() < 0.5:
                await asyncio.sleep(0)
        log.end("finished")
        return await asyncio.gather(*listeners)

    for after, heard in zip(afters, asyncio.run(session()), strict=True):
        expected = after + 1
        for event in heard:
            if event.kind == "gap":
                assert event.data["num_missed"] > 0
                expected += event.data["num_missed"]
                assert event.data["next_id"] == expected
            if event.kind == "line":
                assert event.id == event.data["id"] == expected
                assert event.data["text"] == str(expected)
                expected += 1
        assert expected == max(after, num_lines) + 1
        assert [event.kind for event in heard].count("end") == 1
        assert heard[-1].data == {"reason": "finished", "last_id": num_lines}
        turns = [event.data["turn"] for event in heard if event.kind == "state"]
        assert turns == sorted(set(turns))
        assert turns[-1:] == ([num_lines] if num_lines else [])


def test_a_listener_that_leaves_is_removed():
    async def leave():
        log = CommentaryLog(10)
        log.publish_line({}, {})
        events = log.follow(0)
        await anext(events)
        assert log.num_listeners == 1
        await events.aclose()
        return log.num_listeners

    assert asyncio.run(leave()) == 0


def test_partial_text_is_published_until_its_line_is_complete():
    async def told():
        log = CommentaryLog(10)
        events = log.follow(0)
        heard = []
        for act in (
            lambda: log.publish_partial({"text": "a"}),
            lambda: log.publish_partial({"text": "a goal"}),
            lambda: log.publish_line({"text": "a goal"}, {}),
            lambda: log.end("finished"),
        ):
            act()
            heard.append((await anext(events)).kind)
        return heard

    assert asyncio.run(told()) == ["partial", "partial", "line", "state"]
