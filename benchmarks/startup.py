"""How long until something happens? Import, `RunEnv` to the first result, cleanup.

Question: how long do these three take in a fresh process, with two executors and the embedded
store?

    python benchmarks/startup.py [--rounds 5]
"""

from common import answers_table, arguments, print_section

from dagsched.bench.startup import startup_answers


def section(rounds: int) -> str:
    return answers_table(startup_answers(rounds))


if __name__ == "__main__":
    print_section(section(arguments(__doc__).parse_args().rounds))
