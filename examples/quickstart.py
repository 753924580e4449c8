"""Ten lines: write calls down, run the graph on all CPUs, see where each task ran."""

from dagsched import RunEnv, delayed, submit, visualize


def square(x):
    """A task; any function can be one."""
    return x * x


total = delayed(sum)([delayed(square)(x) for x in range(10)])

with RunEnv() as env:
    run = submit(env, total)
    visualize(run, "quickstart.svg")
