"""How small may a task be? Task Bench: efficiency by grain, METG(50 %), and tasks of 1 ms.

Question: below which CPU time of its kernel does a task of the patterns stencil, FFT, nearest and
random (width 8, 1,000 steps) cost more than it does, on two executors?

    python benchmarks/metg.py [--rounds 5] [--steps 1000] [--plot FILE]
"""

from pathlib import Path

from common import answers_table, arguments, positive, print_section
from plots import need_matplotlib, plot_metg

from dagsched import RunEnv
from dagsched.bench import metg
from dagsched.bench.graphs import PATTERNS


def section(rounds: int, steps: int = metg.STEPS, plot: Path | None = None) -> str:
    with RunEnv(executors=2) as env:
        sweeps = {
            pattern: metg.sweep(env, pattern, rounds, metg.GRAINS_S, steps) for pattern in PATTERNS
        }
    if plot is not None:
        plot_metg(sweeps, plot)
    answers = [metg.metg_answer(pattern, swept) for pattern, swept in sweeps.items()]
    answers += [metg.long_answer(pattern, swept) for pattern, swept in sweeps.items()]
    return answers_table(answers)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=positive, default=metg.STEPS)
    parser.add_argument("--plot", type=Path, help="PNG of efficiency by grain")
    args = parser.parse_args()
    if args.plot is not None:
        need_matplotlib()
    print_section(section(args.rounds, args.steps, args.plot))


if __name__ == "__main__":
    main()
