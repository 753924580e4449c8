"""Plays stories: ``python -m dagsched.testing --seed 7`` prints all that happens in one of them.

``--count 1000 --jobs 2`` plays many in silence, and stops at the first that goes wrong; with
``--minimise FILE`` that one is made small and written as a scenario.
"""

import argparse
import logging
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from dagsched.errors import DagschedError
from dagsched.testing.minimising import is_bad, minimised, scenario_text
from dagsched.testing.stories import drawn, play

CHUNK_SEEDS = 20
"""Seeds that a process plays before it says so."""


def write(text: str) -> None:
    """One line, or several, of the answer."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Play the story of a seed, or find the first seed whose story goes wrong.

    Returns:
        0: all ended as the oracle says; 1: one didn't.
    """
    parser = argparse.ArgumentParser(prog="python -m dagsched.testing", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which story (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="play so many seeds, in silence")
    parser.add_argument("--jobs", type=int, default=1, help="in so many processes")
    parser.add_argument("--no-faults", action="store_true", help="leave the faults out")
    parser.add_argument("--minimise", type=Path, help="write a bad story here, as small as may be")
    options = parser.parse_args(arguments)
    logging.disable()  # what goes wrong is meant to
    if options.count == 1:
        bad = _told(options.seed, with_faults=not options.no_faults)
    else:
        bad = _first_bad(options.seed, options.count, options.jobs)
    if bad is None:
        write(f"{options.count} stories ended as they should")
        return 0
    seed, why = bad
    write(f"seed {seed}: {why}")
    write(f"replay it with: make sim SEED={seed}")
    if options.minimise is not None:
        small = minimised(drawn(seed), write)
        options.minimise.write_text(scenario_text(small, f"seed {seed}: {why}"), encoding="utf-8")
        write(f"written to {options.minimise}")
    return 1


def _told(seed: int, *, with_faults: bool) -> tuple[int, str] | None:
    """One story with all that happens in it."""
    story = drawn(seed, with_faults=with_faults)
    write(f"seed {seed}: nodes {story.nodes}, graphs of {[g.count for g in story.graphs]} tasks")
    for fault in story.faults:
        write(f"  at {fault.at_s:.6f} {fault.what} {fault.arguments}")
    try:
        cluster = play(story, is_recorded=True)
    except DagschedError as error:
        return seed, f"{type(error).__name__}: {error}"
    write("\n".join(cluster.story))
    write(f"{cluster.network.batch_count} batches, {cluster.network.byte_count} bytes")
    return None


def _bad_among(first: int, count: int) -> tuple[int, str] | None:
    for seed in range(first, first + count):
        why = is_bad(drawn(seed))
        if why is not None:
            return seed, why
    return None


def _first_bad(first: int, count: int, jobs: int) -> tuple[int, str] | None:
    """Play many, in processes; chunks are given out one by one, so that a bad one ends it soon."""
    starts = iter(range(first, first + count, CHUNK_SEEDS))
    done_count = 0
    with ProcessPoolExecutor(jobs) as pool:
        running: dict[Future[tuple[int, str] | None], int] = {}

        def give_out() -> None:
            for start in starts:
                size = min(CHUNK_SEEDS, first + count - start)
                running[pool.submit(_bad_among, start, size)] = size
                return

        for _ in range(2 * jobs):
            give_out()
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                done_count += running.pop(future)
                bad = future.result()
                if bad is not None:
                    pool.shutdown(cancel_futures=True)
                    _show(done_count, count, is_over=True)
                    return bad
                give_out()
            _show(done_count, count, is_over=not running)
    return None


def _show(done_count: int, count: int, *, is_over: bool) -> None:
    """The progress bar, where somebody looks; else a line now and then."""
    if not sys.stderr.isatty():
        if is_over or done_count % 1_000 < CHUNK_SEEDS:
            sys.stderr.write(f"{done_count} of {count} stories\n")
            sys.stderr.flush()
    else:
        filled = 40 * done_count // count
        end = "\n" if is_over else ""
        bar = "#" * filled + "." * (40 - filled)
        sys.stderr.write(f"\r{bar} {done_count} of {count} stories{end}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
