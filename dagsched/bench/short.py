"""The short version of the suite, which `dagsched bench` asks: the main questions, a minute in all.

`benchmarks/` asks the same questions with more rounds, patterns and peers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagsched.bench import arrays, costs, metg, startup
from dagsched.bench.measuring import Answer

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

ROUNDS = 3
PATTERN, STEPS = "stencil", 250
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is asked."""

    rounds: int = ROUNDS
    has_arrays: bool = True  # takes about a gigabyte of memory


@contextmanager
def two_nodes() -> "Iterator[RunEnv]":
    """Two nodes of one executor, side by side with whatever else there is."""
    from dagsched.nodes import NodeEnv
    from dagsched.procs import addprocs, rmprocs
    from dagsched.runenv import RunEnv

    a, b, c, d = ids = addprocs(4)
    try:
        with RunEnv(rootpath="/two", nodes=[NodeEnv(a, HOST, [b]), NodeEnv(c, HOST, [d])]) as env:
            env.wait_for_nodes(timeout=60)
            yield env
    finally:
        rmprocs(ids)


def ask_all(options: BenchOptions, say: Callable[[str], None] = lambda _: None) -> list[Answer]:
    """Ask the main questions.

    Args:
        options: how.
        say: is told, in a sentence, what begins.

    Raises:
        BenchError: a value was wrong, or a measurement means nothing.
    """
    from dagsched.runenv import RunEnv

    rounds = options.rounds
    with ExitStack() as stack:
        say("Starting: import, first result, cleanup")
        answers = startup.startup_answers(rounds)
        pool = stack.enter_context(costs.warm_pool())
        env = stack.enter_context(RunEnv(executors=2))
        say("Tasks that do nothing")
        answers += [costs.task_cost(env, key, rounds) for key in costs.SHORT]
        answers.append(costs.small_run(env, rounds))
        answers.append(costs.pool_cost(env, pool, rounds))
        say(f"Tasks of 2 us to 1 ms, in the pattern {PATTERN}")
        swept = metg.sweep(env, PATTERN, rounds, metg.GRAINS_S, STEPS)
        answers += [metg.metg_answer(PATTERN, swept), metg.long_answer(PATTERN, swept)]
        if options.has_arrays:
            say("Arrays of 100 and 200 MB")
            answers.append(arrays.chain_answer(env, 1))
            answers.append(arrays.reading_answer(env, 1))
        say("Two nodes against one")
        with two_nodes() as two:
            answers.append(costs.nodes_cost(env, two, "wide", rounds))
    return answers
