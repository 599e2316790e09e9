"""Nobody waits for ever, and nobody waits for himself."""

import threading

import pytest

from streamingvlm.errors import StreamingVLMError
from streamingvlm.inference.fair_lock import FairLock


def start(task):
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def wait_until_queued(lock, number):
    while len(lock._tickets) < number:
        threading.Event().wait(0.001)


def test_whoever_waits_is_let_in_though_a_loop_never_rests():
    lock, has_asked, rounds = FairLock(), threading.Event(), []

    def loop():
        while not has_asked.is_set():
            with lock.turn():
                rounds.append(1)

    looping = start(loop)
    for _ in range(20):
        with lock.turn():
            pass
    has_asked.set()
    looping.join(30)
    assert not looping.is_alive()
    assert rounds


def test_they_come_in_in_the_order_of_coming():
    lock, order = FairLock(), []

    def enter(number):
        with lock.turn():
            order.append(number)

    with lock.turn():
        threads = []
        for number in range(5):
            threads.append(start(lambda number=number: enter(number)))
            wait_until_queued(lock, number + 2)
    for thread in threads:
        thread.join(30)
    assert order == list(range(5))


def test_a_thread_cannot_enter_twice():
    lock = FairLock()
    with lock.turn(), pytest.raises(StreamingVLMError, match="another thread"), lock.turn():
        pass
    with lock.turn():
        pass


def test_an_error_inside_lets_the_next_one_in():
    lock = FairLock()
    with pytest.raises(KeyError), lock.turn():
        raise KeyError
    with lock.turn():
        pass


def test_who_gives_up_waiting_leaves_the_queue(monkeypatch):
    lock = FairLock()

    def interrupt(_):
        raise KeyboardInterrupt

    def enter():
        with pytest.raises(KeyboardInterrupt), lock.turn():
            pass

    with lock.turn():
        monkeypatch.setattr(lock._moved, "wait_for", interrupt)
        waiting = start(enter)
        waiting.join(30)
        monkeypatch.undo()
        assert len(lock._tickets) == 1
    with lock.turn():
        pass
