"""Clusters of several nodes on this machine, and what the tests see of their recoveries."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dagsched import NodeEnv, Run, RunEnv, addprocs, reset
from dagsched.config import Config
from dagsched.protocol.messages import Holdings
from tests.chaos import harness

HOST = "127.0.0.1"


def new_node(executors: int = 2) -> NodeEnv:
    """A node of newly reserved processes."""
    ids = addprocs(1 + executors)
    return NodeEnv(ids[0], HOST, ids[1:])


@contextmanager
def cluster(
    nodes: int = 2,
    executors: int = 2,
    *,
    metastore: str | None = "memory://",
    config: Config | None = None,
) -> Iterator[RunEnv]:
    """An environment whose nodes have all joined."""
    wanted = [new_node(executors) for _ in range(nodes)]
    with RunEnv(nodes=wanted, metastore=metastore, config=config) as env:
        env.wait_for_nodes(timeout=30)
        yield env


def broker_pid(env: RunEnv, broker: int) -> int:
    """The process of a node's broker, the latest one of that id."""
    started = env._cluster._brokers.latest(broker)  # type: ignore[union-attr]
    assert started is not None
    return int(started.process.pid)


def node_of(env: RunEnv, pid: int) -> NodeEnv:
    """The node whose broker is that process."""
    return next(node for node in env.nodes if broker_pid(env, node.brokerid) == pid)


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def wait_until_lost(env: RunEnv, broker: int, timeout_s: float = 20.0) -> None:
    """Until the master knows that a node is gone."""
    harness.until(
        lambda: broker not in {node.brokerid for node in env.nodes}, timeout_s, f"loss of {broker}"
    )


def stop(pid: int) -> None:
    """SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)


def go_on(pid: int) -> None:
    """SIGCONT."""
    os.kill(pid, signal.SIGCONT)


def drop(env: RunEnv, *removed: NodeEnv) -> None:
    """Take nodes out at once, whatever they have."""
    left = [node for node in env.nodes if node not in removed]
    reset(env, left, drop=True)


def counters(env: RunEnv) -> dict[str, int]:
    """What the master has counted."""
    return dict(env._cluster._core.counters)  # type: ignore[union-attr]


@dataclass
class Overheard:
    """What brokers told when the master asked what they hold, by key of the tasks.

    Args:
        env: whose master is listened to from now on.
    """

    env: RunEnv
    told: list[tuple[int, int, Any, Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        core: Any = self.env._cluster._core  # type: ignore[union-attr]
        receive = core.receive

        def listen(broker: int, message: Any, frames: Any, now: float) -> None:
            if isinstance(message, Holdings):
                firsts, counts, _, lacking, _, unfinished = (bytes(frame) for frame in frames)
                held = [
                    position
                    for first, count in zip(
                        np.frombuffer(firsts, "<i4").tolist(),
                        np.frombuffer(counts, "<i4").tolist(),
                        strict=True,
                    )
                    for position in range(first, first + count)
                ]
                rows = np.frombuffer(unfinished, "<i4").tolist()
                lacks = np.frombuffer(lacking, "<i4").tolist()
                known = core._lives.runs.get(message.run)
                missing = () if known is None else np.flatnonzero(list(known.missing)).tolist()
                self.told.append((message.run, broker, held, rows, [*lacks, *missing]))
            receive(broker, message, frames, now)

        core.receive = listen

    def held(self, run: Run) -> set[str]:
        """Keys of tasks whose values, or their computation, lived at somebody who was asked."""
        return keys_of(
            run,
            (
                position
                for number, _, held, unfinished, _ in self.told
                if number == run.number
                for position in (*held, *unfinished)
            ),
        )

    def wanted(self, run: Run) -> set[str]:
        """Keys of tasks whose values survivors lacked, or that are outputs not yet told of."""
        return keys_of(
            run,
            (
                position
                for number, _, _, _, wanted in self.told
                if number == run.number
                for position in wanted
            ),
        )


def keys_of(run: Run, positions: Iterable[int]) -> set[str]:
    """Keys of the tasks at these positions; other objects of the run have none."""
    order = run.shape.order
    count = len(order)
    return {run.graph.key(int(order[position])) for position in positions if position < count}


def ended_with(lines: Iterable[tuple[int, int, int]], brokers: set[int]) -> set[int]:
    """Tasks that were executed below these brokers."""
    return {task for task, _, broker in lines if broker in brokers}
