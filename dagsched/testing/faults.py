"""What goes wrong in a story: drawn from its seed, several kinds together, and done at its time."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagsched.testing.cluster import SimCluster


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that befalls the cluster: a method of `SimCluster` and its arguments."""

    at_s: float
    what: str
    arguments: tuple[float, ...] = ()
    lasts_s: float = 0.0

    @property
    def end_s(self) -> float:
        """When all is well again, as far as this one goes."""
        return self.at_s + self.lasts_s


def do(cluster: "SimCluster", fault: Fault) -> None:
    """Let it happen."""
    getattr(cluster, fault.what)(*fault.arguments)


def drawn(rng: random.Random, nodes: dict[int, int]) -> list[Fault]:
    """A mix of kinds; times are such that most hit a run."""
    faults: list[Fault] = []
    brokers = sorted(nodes)
    kinds = rng.sample(sorted(_DRAW), rng.choice((1, 1, 2, 3)))
    for kind in kinds:
        faults += _DRAW[kind](rng, brokers)
    faults.sort(key=lambda fault: fault.at_s)
    return faults


def _when(rng: random.Random) -> float:
    """Early: most runs take some tenths of a second; now and then before the nodes are there."""
    return rng.uniform(0.0, 0.4) if rng.random() < 0.8 else rng.uniform(0.0, 2.0)


def _seconds(rng: random.Random) -> float:
    """Shorter than the lease, or longer."""
    return rng.choice((rng.uniform(0.0, 0.5), rng.uniform(0.5, 5.0), rng.uniform(6.5, 9.0)))


def _short(rng: random.Random) -> float:
    return rng.choice((rng.uniform(0.0, 0.5), rng.uniform(0.5, 4.0)))


# --- kinds ----------------------------------------------------------------------------------------


def _executors(rng: random.Random, brokers: list[int]) -> list[Fault]:
    """Each executor dies less often than is fatal."""
    return [
        Fault(_when(rng), "kill_executor", (rng.choice(brokers), rng.randrange(4)))
        for _ in range(rng.randint(1, 2))
    ]


def _losses(rng: random.Random, brokers: list[int]) -> list[Fault]:
    """Nodes are lost, all of them perhaps; then there is another a little later."""
    faults, last_s = [], 0.0
    for _ in range(rng.choice((1, 1, 2, 3))):
        last_s = _when(rng)
        what = rng.choice(("kill_node", "kill_node", "restart_node", "kill_orphan"))
        faults.append(Fault(last_s, what, (rng.choice(brokers),)))
    if len(faults) >= len(brokers):
        end_s = max(fault.at_s for fault in faults)
        new = (max(brokers) + 1, rng.randint(1, 3))
        faults.append(Fault(end_s + rng.uniform(0.0, 3.0), "add_node", new))
    return faults


def _changes(rng: random.Random, brokers: list[int]) -> list[Fault]:
    """Nodes are added and taken out, as planned."""
    faults, there, at_s = [], list(brokers), 0.0
    for _ in range(rng.randint(1, 6)):
        at_s += rng.uniform(0.0, 0.2)
        if len(there) > 1 and rng.random() < 0.5:
            gone = there.pop(rng.randrange(len(there)))
            what = rng.choice(("remove_node", "remove_node", "drop_node"))
            faults.append(Fault(at_s, what, (gone,)))
        else:
            there.append(max(there) + 1)
            faults.append(Fault(at_s, "add_node", (there[-1], rng.randint(1, 3))))
    return faults


def _pauses(rng: random.Random, brokers: list[int]) -> list[Fault]:
    faults = []
    for _ in range(rng.choice((1, 1, 2))):
        seconds, whole = _seconds(rng), rng.randrange(2)
        faults.append(
            Fault(_when(rng), "pause_node", (rng.choice(brokers), seconds, whole), seconds)
        )
    return faults


def _stopped_master(rng: random.Random, brokers: list[int]) -> list[Fault]:  # noqa: ARG001
    seconds = _seconds(rng)
    return [Fault(_when(rng), "pause_master", (seconds,), seconds)]


def _lost_master(rng: random.Random, brokers: list[int]) -> list[Fault]:  # noqa: ARG001
    """Once, or again while the next one recovers."""
    faults, at_s = [], _when(rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        seconds = rng.choice((rng.uniform(0.0, 0.1), rng.uniform(0.1, 5.0)))
        faults.append(Fault(at_s, "kill_master", (seconds,), seconds))
        at_s += seconds + rng.choice((rng.uniform(0.0, 0.3), rng.uniform(0.0, 2.0)))
    return faults


def _store(rng: random.Random, brokers: list[int]) -> list[Fault]:
    """The store fails in one way or several; half of the time the master dies a little later."""
    faults = []
    for _ in range(rng.choice((1, 1, 2))):
        at_s = _when(rng)
        seconds = rng.choice((rng.uniform(0.0, 0.5), rng.uniform(0.5, 12.0)))
        what = rng.choice(
            ("store_refuses", "store_stalls", "store_empties", "store_restarts", "store_resets")
        )
        if what in ("store_refuses", "store_stalls"):
            faults.append(Fault(at_s, what, (seconds,), seconds))
        elif what == "store_restarts":
            faults.append(Fault(at_s, what, (min(seconds, 1.0),), seconds))
        else:
            faults.append(Fault(at_s, what, (rng.randint(1, 3),) if "resets" in what else ()))
    if rng.random() < 0.5:
        faults += _lost_master(rng, brokers)
    return faults


def _weather(rng: random.Random, brokers: list[int]) -> list[Fault]:  # noqa: ARG001
    """Bad at first, or for a while."""
    weather = (
        rng.choice((0.0, 0.02, 0.1, 0.3)),
        rng.choice((0.0, 0.1, 0.5)),
        rng.choice((0.0, 0.1, 0.5)),
        rng.choice((0.0, 0.02)),
    )
    at_s, seconds = rng.choice((0.0, _when(rng))), rng.uniform(0.1, 3.0)
    return [
        Fault(at_s, "set_weather", weather, seconds),
        Fault(at_s + seconds, "set_weather", (0.0, 0.0, 0.0, 0.0)),
    ]


def _splits(rng: random.Random, brokers: list[int]) -> list[Fault]:
    faults = []
    for _ in range(rng.choice((1, 2, 3))):
        one, other = rng.sample([1, *brokers], 2)
        seconds, ways = _short(rng), rng.randint(1, 2)
        faults.append(Fault(_when(rng), "split", (one, other, seconds, ways), seconds))
    return faults


_DRAW = {
    "executors": _executors,
    "losses": _losses,
    "changes": _changes,
    "pauses": _pauses,
    "stopped_master": _stopped_master,
    "lost_master": _lost_master,
    "store": _store,
    "weather": _weather,
    "splits": _splits,
}
