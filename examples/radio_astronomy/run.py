"""Images a made-up sky through phase errors, with and without self-calibration, and checks it.

    python examples/radio_astronomy/run.py [--size laptop | published | continuum] [--picture FILE]

"published" is the ICAL graph of 5,702 tasks, "continuum" the imaging graph of more than 16,000.
"""
# ruff: noqa: INP001, T201 - an example is no package, and prints

import argparse
import time

import kernels
import numpy as np
from facade import Execute
from graphs import SIZES, simulated

from dagsched import submit, visualize


def recovered(model, left, size):
    """For each source what was found of its flux, and the noise that is left over the peak."""
    true = kernels.sky(None, size.pixels, size.sources)
    found = [
        model[y - 1 : y + 2, x - 1 : x + 2].sum() / true[y - 1 : y + 2, x - 1 : x + 2].sum()
        for y, x in np.argwhere(true)
    ]
    return found, left[0].std() / true.max()


def main():
    """Run, check, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="laptop")
    parser.add_argument("--picture", help="file for the picture of the run, .svg or .png")
    options = parser.parse_args()
    size = SIZES[options.size]
    cycle = None if options.size == "continuum" else 1
    with Execute() as do:
        for phase, first_selfcal in ((0.0, None), (0.5, None), (0.5, cycle)):
            start = time.perf_counter()
            run = submit(do.env, simulated(do, size, phase, first_selfcal))
            model, left, _ = run.result()
            found, noise = recovered(model, left, size)
            print(
                f"phase errors of {phase} rad, "
                f"{'no ' if first_selfcal is None else ''}self-calibration: "
                f"{len(run.graph):,} tasks in {time.perf_counter() - start:.2f} s, "
                f"flux {min(found):.3f} to {max(found):.3f} of the true, noise {noise:.2e}"
            )
        if options.picture:
            visualize(run, options.picture)
    if cycle is not None and options.size == "laptop":
        if not (min(found) >= 0.97 and max(found) <= 1.03 and noise <= 6e-3):
            raise SystemExit("the result is WRONG")


main()
