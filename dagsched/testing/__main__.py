"""Replays one story: ``python -m dagsched.testing --seed 7`` prints all that happened in it."""

import argparse
import sys

from dagsched.errors import DagschedError
from dagsched.testing.stories import drawn, play


def write(text: str) -> None:
    """One line, or several, of the answer."""
    sys.stdout.write(text + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Play the story of a seed, or find the first seed whose story goes wrong.

    Returns:
        0: it ended as the oracle says; 1: it didn't.
    """
    parser = argparse.ArgumentParser(prog="python -m dagsched.testing", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which story (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="play so many seeds, in silence")
    parser.add_argument("--no-faults", action="store_true", help="leave the faults out")
    options = parser.parse_args(arguments)
    is_recorded = options.count == 1
    for seed in range(options.seed, options.seed + options.count):
        story = drawn(seed, with_faults=not options.no_faults)
        try:
            cluster = play(story, is_recorded=is_recorded)
        except DagschedError as error:
            write(f"seed {seed}: {type(error).__name__}: {error}")
            return 1
        if is_recorded:
            sizes = [graph.count for graph in story.graphs]
            write(f"seed {seed}: nodes {story.nodes}, graphs of {sizes} tasks")
            write("\n".join(cluster.story))
            write(f"{cluster.network.batch_count} batches, {cluster.network.byte_count} bytes")
    write(f"{options.count} stories ended as they should")
    return 0


if __name__ == "__main__":
    sys.exit(main())
