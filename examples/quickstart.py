"""Ten lines: write calls down, run the graph on all CPUs, see where each task ran."""
# ruff: noqa: INP001, T201 - an example is no package, and prints

from dagsched import RunEnv, delayed, submit, visualize


def square(x):
    """A task; any function can be one."""
    return x * x


total = delayed(sum)([delayed(square)(x) for x in range(10)])

with RunEnv() as env:
    run = submit(env, total)
    print(run.result())  # 285
    visualize(run, "quickstart.svg")
