"""Which functions are short."""

import functools
import gc
import weakref

from dagsched.plugins.shortness import FUNCTIONS_MAX, LONG_S, SHORT_S, Shortness


def quick(x: int) -> int:
    return x


class Box:
    def method(self) -> None:
        pass

    def __call__(self) -> None:
        pass


def test_what_was_never_measured_is_not_short() -> None:
    assert Shortness().of(quick) is None


def test_the_mean_decides() -> None:
    shortness = Shortness()
    shortness.note(quick, 10, 10 * SHORT_S / 2)
    assert shortness.of(quick) == SHORT_S / 2
    for _ in range(10):
        shortness.note(quick, 1, 3 * SHORT_S)
    assert shortness.of(quick) is None
    for _ in range(20):
        shortness.note(quick, 1, 0.0)
    assert shortness.of(quick) is not None


def test_one_long_call_in_a_chunk_is_enough() -> None:
    shortness = Shortness()
    shortness.note(quick, 1000, 0.001)
    shortness.note(quick, 1000, 2 * LONG_S, longest_s=2 * LONG_S)
    assert shortness.of(quick) is None


def test_partials_methods_and_closures_are_what_they_wrap() -> None:
    shortness = Shortness()
    shortness.note(functools.partial(quick, 1), 1, 0.0)
    assert shortness.of(quick) == 0.0
    shortness.note(Box().method, 1, 0.0)
    assert shortness.of(Box().method) == 0.0
    assert shortness.of(Box()) is None
    shortness.note(Box(), 1, 0.0)
    assert shortness.of(Box()) == 0.0
    closures = [lambda n=n: n for n in range(2)]
    shortness.note(closures[0], 1, 0.0)
    assert shortness.of(closures[1]) == 0.0
    shortness.note(len, 1, 0.0)
    assert shortness.of(len) == 0.0
    assert shortness.of(abs) is None


def test_nothing_that_is_bound_stays_alive() -> None:
    shortness = Shortness()

    def note() -> "weakref.ref[Box]":
        box = Box()
        shortness.note(box.method, 1, 0.0)
        shortness.note(lambda: box, 1, 0.0)
        return weakref.ref(box)

    seen = note()
    gc.collect()
    assert seen() is None


def test_so_many_functions_are_known_at_most() -> None:
    shortness = Shortness()
    shortness.note(quick, 1, 0.0)
    for number in range(FUNCTIONS_MAX):
        namespace: dict[str, object] = {}
        exec(f"def f(): return {number}", namespace)
        shortness.note(namespace["f"], 1, 0.0)  # type: ignore[arg-type]  # exec tells no types
    assert shortness.of(quick) is None
