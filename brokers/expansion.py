"""A task returned a graph: planned here, in the executor, so that brokers never see its values.

Imported only when that happens: graphs and planning are not needed to run tasks.
"""

from collections.abc import Sequence

from dagsched.config import Config
from dagsched.graph import build_graph
from dagsched.plan import ClusterShape
from dagsched.planning import make_plan
from dagsched.protocol.messages import Frame
from dagsched.protocol.plans import encode_plan


def expand(value: object, shape: ClusterShape, config: Config) -> Sequence[Frame]:
    """The frames of the plan for a returned `Delayed`.

    Raises:
        GraphError: it is no graph that can be run.
        SerializationError: something in it can't travel.
    """
    graph = build_graph(value, config.source_bytes_min)
    return encode_plan(make_plan(graph, shape, config, {}).plan)
