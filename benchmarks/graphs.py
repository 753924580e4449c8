"""Graphs of calls that do nothing, each with the value that it must give."""

from dagsched import Delayed, delayed


def noop(i):
    return i


def total(*values):
    return len(values)


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def wide(count: int) -> tuple[Delayed, object]:
    return delayed(total)(*[delayed(noop)(i) for i in range(count)]), count


def chain(count: int) -> tuple[Delayed, object]:
    node: object = 0
    for _ in range(count):
        node = delayed(inc)(node)
    return node, count


def tree(leaves: int) -> tuple[Delayed, object]:
    level = [delayed(noop)(i) for i in range(leaves)]
    while len(level) > 1:
        level = [delayed(add)(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0], leaves * (leaves - 1) // 2
