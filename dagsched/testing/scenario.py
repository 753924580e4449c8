"""Histories as text files: what happens in a simulated cluster, and what is expected of it.

A line is a command; ``#`` begins a comment. ``NAME`` names a graph and its run.

    nodes 2:2 5:3                brokers with their executors; first of all
    seed 7                       of delays
    config lease_s=2.0 ...       settings
    slowness 2:3.0 ..            how much longer tasks take on a node
    cluster remote clocks rescued  any of: nodes that the client can't kill, clocks that differ,
                                 a new node where all are gone
    graph NAME SHAPE ARGUMENTS   of `dagsched.testing.graphs`: wide 10, stencil 8 20, ..
    graph NAME rows - 0 0,1      the dependencies of each task
    outputs NAME 2 ..            tasks; by default those of the shape, or the last one
    durations NAME 0.01 ..       seconds of its functions
    functions NAME 0 1 ..        which function each task calls
    task NAME ID fails | large BYTES | returns NAME2 | takes SECONDS
    measured NAME                how long calls take is known before
    source NAME VALUE BYTES      a constant; tasks name them by the numbers after their own
    meta NAME ID ..              tasks that get Refs
    library NAME ..              graphs that tasks may return, in this order
    submit NAME [priority=N] [timeout_s=S]
    at TIME COMMAND              a method of `SimCluster` and its arguments, such as kill_node B;
                                 or cancel NAME, submit NAME
    wait NAME ..                 until these have ended
    until TIME                   let time go by
    drop NAME ..                 the client drops its Refs to what these runs made
    expect NAME STATE [TEXT]     done (values are compared with the oracle), failed, ..; the text
                                 is in the failure's
    expect messages KIND <= N    at most so many were sent
    expect executed NAME <= N    at most so many tasks were run for it
    expect nothing left          no object, segment or run on any node
    expect nothing lost          messages sent are messages taken
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dagsched.config import Config
from dagsched.errors import GraphError
from dagsched.testing import graphs
from dagsched.testing.cluster import SimCluster, SimOutcome
from dagsched.testing.graphs import SimGraph, SimTask
from dagsched.testing.judging import judge_run, unaccounted

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
        self._slowness: dict[int, float] = {}
        self._kinds: set[str] = set()
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
                slowness=self._slowness,
                is_recorded=True,
                is_local="remote" not in self._kinds,
                clocks_differ="clocks" in self._kinds,
                is_rescued="rescued" in self._kinds,
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
            default = getattr(Config(), name)  # those without one are numbers of bytes
            self._settings[name] = (int if default is None else type(default))(value)

    def _do_slowness(self, *words: str) -> None:
        pairs = [word.split(":") for word in words]
        self._slowness = {int(broker): float(factor) for broker, factor in pairs}

    def _do_cluster(self, *words: str) -> None:
        self._kinds = set(words)

    def _do_graph(self, name: str, shape: str, *arguments: str) -> None:
        if shape == "rows":
            deps = [_numbers(row.split(",")) if row != "-" else [] for row in arguments]
            self._graphs[name] = SimGraph(deps, [len(deps) - 1])
        else:
            self._graphs[name] = SHAPES[shape](*map(int, arguments))

    def _do_outputs(self, name: str, *words: str) -> None:
        self._graphs[name].outputs = _numbers(words)

    def _do_durations(self, name: str, *seconds: str) -> None:
        self._graphs[name].function_s = [float(word) for word in seconds]

    def _do_functions(self, name: str, *words: str) -> None:
        self._graphs[name].function_of = _numbers(words)

    def _do_measured(self, name: str) -> None:
        self._graphs[name].is_measured = True

    def _do_source(self, name: str, value: str, size_bytes: str) -> None:
        self._graphs[name].sources.append(graphs.constant(int(value), int(size_bytes)))

    def _do_meta(self, name: str, *words: str) -> None:
        self._graphs[name].meta = frozenset(_numbers(words))

    def _do_library(self, *names: str) -> None:
        self._library = list(names)

    def _do_task(self, name: str, at: str, what: str, argument: str = "") -> None:
        number = int(at)
        task = SimTask(number, fails=what == "fails")
        if what == "large":
            task = SimTask(number, size_bytes=int(argument))
        elif what == "returns":
            if argument not in self._library:
                self._library.append(argument)
            task = SimTask(number, returns=self._library.index(argument))
        elif what == "takes":
            task = SimTask(number, seconds=float(argument))
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
            action = partial(getattr(self.cluster, command), *map(_number, words))
        self.cluster.clock.at(float(when), action)

    def _cancel(self, name: str) -> None:
        self.cluster.cancel(self._outcomes[name])

    def _do_wait(self, *names: str) -> None:
        self.cluster.step_until(
            lambda: all(n in self._outcomes and self._outcomes[n].is_over for n in names), LIMIT_S
        )

    def _do_until(self, when: str) -> None:
        rest_s = float(when) - self.cluster.clock.now
        if rest_s > 0:
            self.cluster.let_pass(rest_s)

    def _do_drop(self, *names: str) -> None:
        for name in names:
            for ref in sorted(set(self._outcomes[name].refs)):
                self.cluster.drop_ref(*ref)

    # --- expectations -----------------------------------------------------------------------------

    def _do_expect(self, what: str, *words: str) -> None:
        if (what, words) == ("nothing", ("lost",)):
            _demand(not (vanished := unaccounted(self.cluster)), f"{vanished}")
        elif what == "nothing":
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
            wrong = judge_run(graph, [self._graphs[other] for other in self._library], outcome)
            _demand(not wrong, "; ".join(wrong))


def _number(word: str) -> float:
    return int(word) if word.lstrip("-").isdigit() else float(word)


def _numbers(words: Sequence[str]) -> list[int]:
    return [int(word) for word in words]


def _demand(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ScenarioError(otherwise)
