"""ZeroMQ endpoints of master and brokers: frames in, frames out, never waiting."""

from dagsched.transport.endpoints import BrokerEndpoint, DataPort, MasterEndpoint

__all__ = ["BrokerEndpoint", "DataPort", "MasterEndpoint"]
