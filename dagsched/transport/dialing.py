"""A broker's connection to a master that is not there yet, and may go as the last one did.

Responsible for what differs from a `BrokerEndpoint`: nothing is queued for a peer that isn't
connected, and the end of the connection is told.
"""

import zmq
from zmq.utils.monitor import recv_monitor_message

from dagsched.transport.endpoints import Batch, BrokerEndpoint


class DialingEndpoint(BrokerEndpoint):
    """A `BrokerEndpoint` that dials until somebody listens, and tells when that ends.

    Args:
        context: shared with the broker's `DataPort`.
        broker: own process id.
        path: where a master may be bound some day.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", broker: int, path: str) -> None:
        super().__init__(context, broker, path, is_immediate=True)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.monitor_fd = int(self._monitor.getsockopt(zmq.FD))

    def send(self, frames: Batch) -> None:
        """Send a batch unless one waits already: sessions send again what was dropped."""
        if not self._queue:
            super().send(frames)

    def is_cut(self) -> bool:
        """Whether a connection that was there has ended."""
        cut = False
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            recv_monitor_message(self._monitor, zmq.NOBLOCK)
            cut = True
        return cut

    def close(self, linger_ms: int = 0) -> None:
        """Let go of the connection."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        super().close(linger_ms)
