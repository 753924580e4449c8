"""What do two nodes on one machine cost, against one node with as many executors?

Question: how many times longer does a run take on two nodes of one executor than on one node of
two? Both are up all the time; each round runs the same graph on both, in turns which comes first.

    python benchmarks/nodes.py [--rounds 5]
"""

from common import answers_table, arguments, print_section

from dagsched import RunEnv
from dagsched.bench import costs
from dagsched.bench.short import two_nodes


def section(rounds: int) -> str:
    with RunEnv(executors=2) as one, two_nodes() as two:
        answers = [costs.nodes_cost(one, two, key, rounds) for key in costs.SHORT]
    return answers_table(answers)


if __name__ == "__main__":
    print_section(section(arguments(__doc__).parse_args().rounds))
