"""Nobody waits for ever, and nobody waits for himself."""

import threading

import pytest

from streamingvlm.inference.fair_lock import FairLock


def start(task):
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    return thread


def wait_until_queued(lock, number):
    while len(lock._threads) < number:
        threading.Event().wait(0.001)


def test_whoever_waits_is_let_in_though_a_loop_never_rests():
    lock, has_asked, rounds = FairLock(), threading.Event(), []

    def loop():
        while not has_asked.is_set():
            with lock:
                rounds.append(1)

    looping = start(loop)
    for _ in range(20):
        with lock:
            pass
    has_asked.set()
    looping.join(30)
    assert not looping.is_alive()
    assert rounds


def test_they_come_in_in_the_order_of_coming():
    lock, order = FairLock(), []

    def enter(number):
        with lock:
            order.append(number)

    with lock:
        threads = []
        for number in range(5):
            threads.append(start(lambda number=number: enter(number)))
            wait_until_queued(lock, number + 2)
    for thread in threads:
        thread.join(30)
    assert order == list(range(5))


def test_a_thread_that_is_inside_may_enter_again_and_leaves_when_it_has_left_as_often():
    lock, has_entered = FairLock(), threading.Event()

    def enter():
        with lock:
            has_entered.set()

    with lock:
        with lock:
            waiting = start(enter)
            wait_until_queued(lock, 2)
        assert not has_entered.is_set()
    waiting.join(30)
    assert has_entered.is_set()


def test_an_error_inside_lets_the_next_one_in():
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass


def test_who_gives_up_waiting_leaves_the_queue(monkeypatch):
    lock = FairLock()

    def interrupt(_):
        raise KeyboardInterrupt

    def enter():
        with pytest.raises(KeyboardInterrupt), lock:
            pass

    with lock:
        monkeypatch.setattr(lock._changed, "wait_for", interrupt)
        waiting = start(enter)
        waiting.join(30)
        monkeypatch.undo()
        assert len(lock._threads) == 1
    with lock:
        pass
