"""Nodes: how they look, what is refused, how processes are grouped, what a reset changes."""

import pickle
import socket

import pytest

from dagsched.errors import NoNodesError
from dagsched.nodes import (
    NodeEnv,
    canonical_host,
    check_nodes,
    group_nodes,
    is_local_host,
    node_changes,
)

HOST = "127.0.0.1"


def test_repr_is_host_broker_and_executors() -> None:
    assert repr(NodeEnv(2, HOST, [3, 4, 5])) == "127.0.0.1 [2 <-> 3,4,5]"


def test_arguments_by_keyword_and_any_iterable_keep_their_order() -> None:
    node = NodeEnv(brokerid=7, host="x", executorids=iter([9, 8]))
    assert (node.brokerid, node.host, node.executorids) == (7, "x", (9, 8))
    assert node.ids == (7, 9, 8)


def test_equal_nodes_are_equal_and_survive_a_pickle() -> None:
    node = NodeEnv(2, HOST, range(3, 5))
    assert node == NodeEnv(2, HOST, (3, 4))
    assert hash(node) == hash(NodeEnv(2, HOST, (3, 4)))
    assert node != NodeEnv(2, HOST, (4, 3))
    assert pickle.loads(pickle.dumps(node)) == node


def test_a_node_can_not_be_changed() -> None:
    node = NodeEnv(2, HOST, [3])
    with pytest.raises(AttributeError, match="can't be changed"):
        node.brokerid = 5
    assert node.brokerid == 2


@pytest.mark.parametrize("ids", [5, "345", b"345", [3.0], [True], ["3"]])
def test_executor_ids_that_are_no_ints_are_refused(ids: object) -> None:
    with pytest.raises(TypeError):
        NodeEnv(2, HOST, ids)  # type: ignore[arg-type]


def check(*nodes: NodeEnv, known: tuple[int, ...] = (2, 3, 4, 5, 6)) -> tuple[NodeEnv, ...]:
    return check_nodes(nodes, known)


def test_good_nodes_come_back_as_they_are() -> None:
    nodes = (NodeEnv(2, HOST, [3, 4]), NodeEnv(5, "localhost", [6]))
    assert check(*nodes) == nodes


def test_the_master_may_be_a_broker() -> None:
    assert check(NodeEnv(1, HOST, [2, 4, 6]))[0].brokerid == 1


def test_an_unknown_id_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"process 9 of node .*procs\(\) has \[1, 2, 3, 4, 5, 6\]"):
        check(NodeEnv(2, HOST, [3, 9]))


def test_an_id_in_two_places_is_named() -> None:
    with pytest.raises(ValueError, match="process 3 is in two places"):
        check(NodeEnv(2, HOST, [3]), NodeEnv(4, HOST, [5, 3]))
    with pytest.raises(ValueError, match="process 2 is in two places"):
        check(NodeEnv(2, HOST, [2]))


def test_the_master_can_be_no_executor() -> None:
    with pytest.raises(ValueError, match="process 1 is the master and can't be an executor"):
        check(NodeEnv(2, HOST, [1, 3]))


def test_a_node_needs_an_executor() -> None:
    with pytest.raises(ValueError, match="has no executor"):
        check(NodeEnv(2, HOST, []))


def test_no_node_at_all() -> None:
    with pytest.raises(NoNodesError, match="list of nodes is empty"):
        check()


def test_what_is_no_node_is_refused() -> None:
    with pytest.raises(TypeError, match="must be NodeEnv objects, not tuple"):
        check((2, HOST, [3]))  # type: ignore[arg-type]


def test_another_host_can_not_be_used_yet() -> None:
    with pytest.raises(NoNodesError, match=r"192\.0\.2\.7.*not possible yet"):
        check(NodeEnv(2, "192.0.2.7", [3]))


def test_the_lowest_id_of_a_host_is_its_broker() -> None:
    assert group_nodes({4: HOST, 2: HOST, 3: HOST}) == (NodeEnv(2, HOST, [3, 4]),)


def test_spellings_of_the_local_host_are_one_host() -> None:
    hosts = {2: "localhost", 3: HOST, 4: "::1", 5: socket.gethostname()}
    assert group_nodes(hosts) == (NodeEnv(2, HOST, [3, 4, 5]),)


def test_hosts_become_nodes_in_the_order_of_their_brokers() -> None:
    hosts = {2: "192.0.2.9", 3: HOST, 4: "192.0.2.9", 5: HOST}
    assert group_nodes(hosts) == (NodeEnv(2, "192.0.2.9", [4]), NodeEnv(3, HOST, [5]))


def test_a_lonely_process_is_left_out_with_a_warning() -> None:
    hosts = {2: HOST, 3: HOST, 4: "192.0.2.9"}
    with pytest.warns(UserWarning, match=r"process 4 on host 192\.0\.2\.9 is alone"):
        assert group_nodes(hosts) == (NodeEnv(2, HOST, [3]),)


def test_one_process_alone_is_no_node() -> None:
    with pytest.raises(NoNodesError, match=r"host 127\.0\.0\.1 has 1 process"):
        group_nodes({2: HOST})


def test_local_hosts() -> None:
    for name in ("localhost", "127.0.0.1", "::1", "[::1]", "LOCALHOST", socket.gethostname()):
        assert is_local_host(name), name
        assert canonical_host(name) == HOST
    assert not is_local_host("192.0.2.7")
    assert canonical_host("192.0.2.7") == "192.0.2.7"


def test_changes_from_one_list_to_another() -> None:
    old = NodeEnv(2, HOST, [3])
    stays = NodeEnv(4, "localhost", [5])
    grown = NodeEnv(4, HOST, [5, 6])
    new = NodeEnv(7, HOST, [8])
    changes = node_changes([old, stays], [grown, new])
    assert changes == ((new,), (old,), (grown,))
    assert changes.added == (new,)
    assert changes.removed == (old,)
    assert changes.kept == (grown,)
