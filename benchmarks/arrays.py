"""What does handing large arrays from task to task cost, beside a loop in one process?

Questions: how many times its seconds takes a chain of 20 arrays of 100 MB whose every step runs on
another executor than the one before? And one array of 200 MB that 20 tasks read?

    python benchmarks/arrays.py [--rounds 5]

No option pins a task to an executor; how the chain is made to change them all the same is told in
`dagsched/bench/arrays.py`, and how often it did stands below the table.
"""

from common import answers_table, arguments, print_section

from dagsched import RunEnv
from dagsched.bench import arrays


def section(rounds: int) -> str:
    with RunEnv(executors=2) as env:
        answers = [
            ask(env, rounds)
            for ask in (arrays.chain_answer, arrays.plain_chain_answer, arrays.reading_answer)
        ]
    return answers_table(answers)


if __name__ == "__main__":
    print_section(section(arguments(__doc__).parse_args().rounds))
