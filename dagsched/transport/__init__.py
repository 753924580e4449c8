"""ZeroMQ endpoints of master and brokers: frames in, frames out, never waiting."""

from dagsched.transport.curve import CurveKeys
from dagsched.transport.endpoints import BrokerEndpoint, DataPort, MasterEndpoint

__all__ = ["BrokerEndpoint", "CurveKeys", "DataPort", "MasterEndpoint"]
