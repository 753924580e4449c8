"""Where does the time of a task go? CPU time of each stage; the same as `dagsched bench --stages`.

python benchmarks/stages.py [--rounds 5] [--plot FILE]
"""

from pathlib import Path

from common import arguments, print_section
from plots import need_matplotlib, plot_stages

from dagsched.bench.display import STAGE_HEADINGS, figure, markdown, spread_text, stage_cells
from dagsched.bench.stages import measure_stages


def section(rounds: int, plot: Path | None = None) -> str:
    told = measure_stages(rounds=rounds)
    if plot is not None:
        plot_stages(told, plot)
    rows = []
    for stage in told.stages:
        cells = stage_cells(stage)
        rows.append([f"- {stage.name}" if stage.depth else stage.name, *cells[1:]])
    return (
        f"{markdown(STAGE_HEADINGS, rows)}\n\n"
        f"{told.graph}; the run itself took {spread_text(told.wall_us)} us a task, a call in a "
        f"plain loop {figure(told.loop_us.median)} us of CPU."
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--plot", type=Path, help="PNG of the stages")
    args = parser.parse_args()
    if args.plot is not None:
        need_matplotlib()
    print_section(section(args.rounds, args.plot))


if __name__ == "__main__":
    main()
