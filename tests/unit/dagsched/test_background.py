"""Jobs in a thread of their own, and answers that threads wait for."""

import logging
import threading

import pytest

from dagsched.answers import NO_ANSWER, Answers
from dagsched.background import BackgroundThread


def test_jobs_are_done_in_order_and_all_before_the_end() -> None:
    done: list[int] = []
    thread = BackgroundThread("test-jobs")
    for number in range(50):
        thread.do(lambda number=number: done.append(number))  # type: ignore[misc]
    thread.stop(10)
    assert done == list(range(50))
    assert not any(thread.name == "test-jobs" for thread in threading.enumerate())
    thread.do(lambda: done.append(-1))
    assert done == list(range(50))


def test_a_job_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    thread = BackgroundThread("test-jobs")
    with caplog.at_level(logging.ERROR):
        thread.do(lambda: 1 // 0)
        thread.do(lambda: done.append(1))
        thread.stop(10)
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text


def test_a_job_may_stop_its_own_thread() -> None:
    thread = BackgroundThread("test-jobs")
    stopped = threading.Event()

    def stop() -> None:
        thread.stop(10)
        stopped.set()

    thread.do(stop)
    assert stopped.wait(10)


def test_nothing_starts_without_a_job() -> None:
    thread = BackgroundThread("test-none")
    thread.stop(10)
    assert not any(thread.name == "test-none" for thread in threading.enumerate())


def test_answers_go_to_who_asked() -> None:
    answers = Answers()
    first, second = answers.ask(), answers.ask()
    answers.give(second, "two")
    answers.give(first, None)
    assert answers.wait(second, 1) == "two"
    assert answers.wait(first, 1) is None


def test_an_answer_that_comes_too_late_is_dropped() -> None:
    answers = Answers()
    request = answers.ask()
    assert answers.wait(request, 0.01) is NO_ANSWER
    answers.give(request, "late")
    assert answers._answer_by_request == {}


def test_closing_wakes_who_waits() -> None:
    answers = Answers()
    request = answers.ask()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(answers.wait(request, None)))
    thread.start()
    answers.close()
    thread.join(10)
    assert got == [NO_ANSWER]
