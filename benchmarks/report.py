"""Ask everything, and print the tables of README.md; or write them, and the pictures.

    python benchmarks/report.py [--rounds 5] [--only floor] [--write]

With ``--write`` each table in README.md between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is
replaced, with the machine, its load and the day, and the pictures in plots/ are drawn anew. Takes
some ten minutes on an idle machine; nothing else should run meanwhile.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import arrays
import floor
import metg
import nodes
import peers
import stages
import startup
from common import PLOTS, README, arguments, replaced
from plots import need_matplotlib

from dagsched.bench.measuring import machine_line

SECTIONS: dict[str, tuple[str, Callable[[int, bool], str]]] = {
    "floor": ("floor.py", lambda rounds, _: floor.section(rounds)),
    "floor2": ("floor.py --nodes 2", lambda rounds, _: floor.section(rounds, nodes=2)),
    "nodes": ("nodes.py", lambda rounds, _: nodes.section(rounds)),
    "startup": ("startup.py", lambda rounds, _: startup.section(rounds)),
    "arrays": ("arrays.py", lambda rounds, _: arrays.section(rounds)),
    "metg": (
        "metg.py",
        lambda rounds, has_plots: metg.section(rounds, plot=_plot("metg", has_plots)),
    ),
    "stages": (
        "stages.py",
        lambda rounds, has_plots: stages.section(rounds, _plot("stages", has_plots)),
    ),
    "peers": (
        "peers.py",
        lambda rounds, has_plots: peers.section(min(rounds, 3), plot=_plot("peers", has_plots)),
    ),
}


def _plot(name: str, has_plots: bool) -> Path | None:
    return PLOTS / f"{name}.png" if has_plots else None


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS)
    parser.add_argument("--write", action="store_true", help="into README.md and plots/")
    args = parser.parse_args()
    if args.write:
        need_matplotlib()
    for name in args.only or SECTIONS:
        command, ask = SECTIONS[name]
        day, load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
        table = ask(args.rounds, args.write)
        where = f"{machine_line()}; load {load:.1f} when it began"
        section = f"{table}\n\n`python benchmarks/{command}`, {day}: {where}."
        print(f"\n{section}", flush=True)
        if args.write:
            README.write_text(replaced(README.read_text(), name, section))


if __name__ == "__main__":
    main()
