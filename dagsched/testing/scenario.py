"""Histories as text files: what happens in a simulated cluster, and what is expected of it.

A line is a command; ``#`` begins a comment. ``NAME`` names a graph and its run.

    nodes 2:2 5:3                brokers with their executors; first of all
    seed 7                       of delays
    config lease_s=2.0 ...       settings
    graph NAME SHAPE ARGUMENTS   of `dagsched.testing.graphs`: wide 10, stencil 8 20, ..
    durations NAME 0.01          seconds of its tasks
    task NAME ID fails | large BYTES | returns NAME2
    submit NAME [priority=N] [timeout_s=S]
    at TIME COMMAND              kill_executor B I, kill_node B, add_node B E, remove_node B,
                                 cancel NAME, submit NAME
    wait NAME ..                 until these have ended
    expect NAME STATE [TEXT]     done (values are compared with the oracle), failed, ..; the text
                                 is in the failure's
    expect messages KIND <= N    at most so many were sent
    expect executed NAME <= N    at most so many tasks were run for it
    expect nothing left          no object, segment or run on any node
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dagsched.config import Config
from dagsched.errors import GraphError
from dagsched.testing import graphs
from dagsched.testing.cluster import SimCluster, SimOutcome
from dagsched.testing.graphs import SimGraph, SimTask, serial_values

LIMIT_S = 60.0  # of simulated time, for one `wait`

SHAPES: dict[str, Callable[..., SimGraph]] = {
    "wide": graphs.wide,
    "chain": graphs.chain,
    "tree": graphs.tree,
    "stencil": graphs.stencil,
    "butterfly": graphs.butterfly,
}


class ScenarioError(AssertionError):
    """A history went another way than its text expects; says the line."""


class Scenario:
    """Reads and plays one history."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._nodes: dict[int, int] = {}
        self._seed = 0
        self._settings: dict[str, Any] = {}
        self._graphs: dict[str, SimGraph] = {}
        self._library: list[str] = []
        self._outcomes: dict[str, SimOutcome] = {}
        self._cluster: SimCluster | None = None

    @classmethod
    def from_file(cls, path: Path) -> "Scenario":
        """The history in a file."""
        return cls(path.read_text(encoding="utf-8"))

    @property
    def cluster(self) -> SimCluster:
        """The cluster, started by the first command that needs it."""
        if self._cluster is None:
            self._cluster = SimCluster(
                self._nodes,
                seed=self._seed,
                config=Config(**self._settings),
                library=[self._graphs[name] for name in self._library],
                is_recorded=True,
            )
        return self._cluster

    def play(self) -> SimCluster:
        """Do all lines.

        Raises:
            ScenarioError: something isn't as a line expects.
            GraphError: a line isn't a command.
        """
        for number, line in enumerate(self._lines, 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            handler = getattr(self, f"_do_{words[0]}", None)
            if handler is None:
                raise GraphError(f"line {number}: {words[0]!r} is no command of scenarios")
            try:
                handler(*words[1:])
            except ScenarioError as error:
                raise ScenarioError(f"line {number}: {line.strip()}: {error}") from error
        return self.cluster

    # --- commands ---------------------------------------------------------------------------------

    def _do_nodes(self, *words: str) -> None:
        pairs = [word.split(":") for word in words]
        self._nodes = {int(broker): int(executors) for broker, executors in pairs}

    def _do_seed(self, seed: str) -> None:
        self._seed = int(seed)

    def _do_config(self, *words: str) -> None:
        for word in words:
            name, value = word.split("=")
            self._settings[name] = type(getattr(Config(), name))(value)

    def _do_graph(self, name: str, shape: str, *arguments: str) -> None:
        self._graphs[name] = SHAPES[shape](*map(int, arguments))

    def _do_durations(self, name: str, seconds: str) -> None:
        self._graphs[name].function_s = [float(seconds)]

    def _do_task(self, name: str, at: str, what: str, argument: str = "") -> None:
        number = int(at)
        task = SimTask(number, fails=what == "fails")
        if what == "large":
            task = SimTask(number, size_bytes=int(argument))
        elif what == "returns":
            if argument not in self._library:
                self._library.append(argument)
            task = SimTask(number, returns=self._library.index(argument))
        self._graphs[name].tasks[number] = task

    def _do_submit(self, name: str, *words: str) -> None:
        options: dict[str, Any] = {}
        for word in words:
            key, value = word.split("=")
            options[key] = int(value) if key == "priority" else float(value)
        self._outcomes[name] = self.cluster.submit(self._graphs[name], **options)

    def _do_at(self, when: str, command: str, *words: str) -> None:
        if command == "submit":
            action: Callable[[], None] = partial(self._do_submit, *words)
        elif command == "cancel":
            action = partial(self._cancel, words[0])
        else:
            action = partial(getattr(self.cluster, command), *map(int, words))
        self.cluster.clock.at(float(when), action)

    def _cancel(self, name: str) -> None:
        self.cluster.cancel(self._outcomes[name])

    def _do_wait(self, *names: str) -> None:
        self.cluster.step_until(
            lambda: all(n in self._outcomes and self._outcomes[n].is_over for n in names), LIMIT_S
        )

    # --- expectations -----------------------------------------------------------------------------

    def _do_expect(self, what: str, *words: str) -> None:
        if what == "nothing":
            _demand(not (left := self.cluster.left_behind()), f"left: {left}")
        elif what == "messages":
            count = self.cluster.network.counts[words[0]]
            _demand(count <= int(words[2]), f"{count} were sent")
        elif what == "executed":
            run = self._outcomes[words[0]].run
            count = sum(n for (of, _), n in self.cluster.executed.items() if of == run)
            _demand(count <= int(words[2]), f"{count} were")
        else:
            self._expect_outcome(what, words[0], " ".join(words[1:]))

    def _expect_outcome(self, name: str, state: str, text: str) -> None:
        outcome, graph = self._outcomes[name], self._graphs[name]
        _demand(outcome.state == state, f"{outcome.state}, {outcome.failure}")
        if text:
            _demand(text in str(outcome.failure), f"{outcome.failure}")
        if state == "done":
            values = serial_values(graph, [self._graphs[other] for other in self._library])
            wrong = [
                number for number in graph.outputs if outcome.value_of(number) != values[number]
            ]
            _demand(not wrong, f"wrong values of {wrong}")


def _demand(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ScenarioError(otherwise)
