"""What does a task cost? Graphs of no-ops end to end, each beside a plain loop in the same run.

Question: how many microseconds does one more task cost, from the call of `rundag` on a built graph
until the value is back, with two executors and the embedded store?

    python benchmarks/floor.py [--nodes 1|2] [--rounds 5]
"""

from contextlib import ExitStack

from common import answers_table, arguments, print_section

from dagsched import RunEnv
from dagsched.bench import costs
from dagsched.bench.short import two_nodes


def section(rounds: int, nodes: int = 1) -> str:
    with ExitStack() as stack:
        pool = stack.enter_context(costs.warm_pool())
        env = stack.enter_context(RunEnv(executors=2) if nodes == 1 else two_nodes())
        answers = [costs.task_cost(env, key, rounds) for key in costs.CASES]
        answers += [costs.small_run(env, rounds), costs.pool_cost(env, pool, rounds)]
    return answers_table(answers)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2))
    args = parser.parse_args()
    print_section(section(args.rounds, args.nodes))


if __name__ == "__main__":
    main()
