"""Which way batches go to another broker: to it, or through the master where it can't be reached.

A network may keep two nodes apart that both reach the master. Sessions make of whatever ways there
are one link, so a way is only a guess: batches that go both ways are taken once. Pure.
"""

from collections.abc import Mapping
from typing import TypeVar

from dagsched.protocol.messages import SetPeers

Peer = TypeVar("Peer", bound=int)
Known = TypeVar("Known")

DIRECT_EVERY_S = 1.0
"""While batches go through the master, one in so long also goes directly, to find that it can."""


def peers_after(
    before: Mapping[Peer, Known], message: SetPeers, come: Mapping[Peer, Known]
) -> dict[Peer, Known]:
    """What is known of the other nodes after a message of the master.

    Args:
        before: what was known of each.
        message: of the master.
        come: what is to be known of those that the message names.
    """
    gone = message.gone
    kept = {} if gone is None else {peer: of for peer, of in before.items() if peer not in gone}
    return {**kept, **come}


class Routes:
    """The ways to all other brokers."""

    def __init__(self) -> None:
        self._is_relayed: dict[int, bool] = {}  # what was heard last came through the master
        self._tried_s: dict[int, float] = {}

    def heard(self, peer: int, *, is_relayed: bool) -> None:
        """Something came from a broker, directly or through the master."""
        if is_relayed or self._is_relayed:
            self._is_relayed[peer] = is_relayed

    def ways(self, peer: int, *, is_unanswered: bool, now: float) -> tuple[bool, bool]:
        """Whether a batch goes directly, and whether it goes through the master."""
        if not is_unanswered and not self._is_relayed.get(peer):
            return True, False
        is_tried = now >= self._tried_s.get(peer, 0.0) + DIRECT_EVERY_S
        if is_tried:
            self._tried_s[peer] = now
        return is_tried, True

    def forget(self, peer: int) -> None:
        """A broker is gone."""
        self._is_relayed.pop(peer, None)
        self._tried_s.pop(peer, None)
