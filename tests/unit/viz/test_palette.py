"""Colours and text widths."""

import doctest

import pytest

import dagsched.viz.palette
import dagsched.viz.text
from dagsched.viz.palette import grey, node_colours, shortened, text_on, text_width


def brightness(colour: str) -> int:
    return int(colour[1:3], 16)


@pytest.mark.parametrize("count", [0, 1, 9, 500, 5_000])
def test_there_are_as_many_different_colours_as_nodes(count: int) -> None:
    colours = node_colours(count)
    assert len(set(colours)) == len(colours) == count
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours)


def test_more_nodes_leave_the_colours_of_the_first_as_they_are() -> None:
    assert node_colours(40)[:12] == node_colours(12)


def test_the_earlier_the_darker() -> None:
    levels = [brightness(grey(rank, 100)) for rank in range(100)]
    assert levels == sorted(levels)
    assert levels[0] < levels[50] < levels[99]


def test_text_is_white_on_dark_and_dark_on_light() -> None:
    assert text_on(grey(0, 10)) == "#ffffff"
    assert text_on(grey(9, 10)) == "#1a1a1a"
    assert text_on("#ffffff") == "#1a1a1a"


def test_shortened_text_fits_and_keeps_both_ends() -> None:
    text = "a_function_with_a_very_long_name - 12345"
    short = shortened(text, 11.5, 150)
    assert text_width(short, 11.5) <= 150
    assert short.startswith("a_fun")
    assert short.endswith("12345")
    assert shortened("f - 1", 11.5, 150) == "f - 1"


@pytest.mark.parametrize("module", [dagsched.viz.palette, dagsched.viz.text])
def test_the_examples_are_true(module) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted >= 4
