"""Writing calls down."""

import copy
import functools
import inspect
import math
import operator
import pickle
import subprocess
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest

from dagsched.delayed import Delayed, DelayedFunction, delayed
from tests.graphs import f, g, ladder, serial


def add(x: int, y: int = 1) -> int:
    """Adds."""
    return x + y


@delayed(retries=2, name="decorated one")
def decorated(x: int) -> int:
    return x * 2


class Account:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    @delayed
    def plus(self, other: int) -> int:
        return self.amount + other

    def minus(self, other: int, *, twice: bool = False) -> int:
        return self.amount - other * (2 if twice else 1)


def five() -> Delayed:
    return delayed(add)(2, 3)


# What calls become.


def test_a_call_is_written_down_and_not_made() -> None:
    calls: list[int] = []
    node = delayed(calls.append)(1)
    assert type(node) is Delayed
    assert calls == []
    assert serial(node) is None
    assert calls == [1]


def test_forms_of_delayed() -> None:
    @delayed
    def bare(x: int) -> int:
        return x + 1

    @delayed(nout=2)
    def with_options(x: int) -> tuple[int, int]:
        return x, x

    node = five()
    assert serial(bare(1)) == 2
    assert serial(list(with_options(4))) == [4, 4]
    assert serial(delayed()(add)(1)) == 2
    assert serial(delayed(5)) == 5
    assert serial(delayed([1, {"a": node}])) == [1, {"a": 5}]
    assert serial(delayed(dict)(a=node)) == {"a": 5}
    assert delayed(node) is node
    assert delayed(bare) is bare
    assert serial(delayed(functools.partial(add, 3))(4)) == 7


def test_a_delayed_function_looks_like_what_it_wraps() -> None:
    function = delayed(add)
    assert function.__name__ == "add"
    assert function.__doc__ == "Adds."
    assert function.__wrapped__ is add
    assert str(inspect.signature(function)) == "(x: int, y: int = 1) -> int"
    assert repr(function) == "delayed(add)"
    with pytest.raises(AttributeError):
        _ = function.nothing


def test_methods() -> None:
    account = Account(10)
    assert serial(account.plus(5)) == 15
    assert serial(Account.plus(account, 5)) == 15
    assert serial(account.plus.options(retries=1)(6)) == 16
    assert account.plus.options(retries=1)(6)._call._options.retries == 1
    assert serial(delayed(account.minus)(1)) == 9


def test_keys_name_the_function_and_are_unique() -> None:
    first, second = delayed(add)(1), delayed(add)(1)
    assert first.key.startswith("add-")
    assert first.key == first.key != second.key
    assert repr(first) == f"Delayed({first.key})"
    assert decorated(1).key.startswith("decorated one-")
    assert delayed(functools.partial(add, 1))().key.startswith("add-")
    assert first == first
    assert first != second
    assert {first: 1}[first] == 1


# Options.


def test_options_are_kept_and_changed_in_copies() -> None:
    node = delayed(
        add, name="n", meta=True, nout=3, retries=2, timeout=1, priority=-1,
        resources={"gpu": 1}, labels="big", persist=True,
    )(1)  # fmt: skip
    options = node._call._options
    assert (options.name, options.meta, options.nout, options.retries) == ("n", True, 3, 2)
    assert (options.timeout_s, options.priority) == (1.0, -1)
    assert (options.resources, options.labels, options.persist) == ({"gpu": 1.0}, ("big",), True)
    changed = node.options(retries=5, labels=["a", "b"])
    assert (changed._call._options.retries, changed._call._options.labels) == (5, ("a", "b"))
    assert changed._call._options.name == "n"
    assert changed._args is node._args
    assert options.retries == 2
    assert decorated.options(name=None)(1).key.startswith("decorated-")
    assert delayed(five(), name="other").key.startswith("other-")
    assert delayed(decorated, priority=3)(1)._call._options.retries == 2


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"retries": -1}, ValueError, "retries must not be negative"),
        ({"crash_limit": 0}, ValueError, "crash_limit must be 1 or more, not 0"),
        ({"crash_limit": True}, TypeError, "crash_limit must be an int"),
        ({"crash_limit": 2.0}, TypeError, "crash_limit must be an int"),
        ({"retries": 1.5}, TypeError, "retries must be an int"),
        ({"retries": True}, TypeError, "retries must be an int"),
        ({"retries": False}, TypeError, "retries must be an int"),
        ({"retries": None}, TypeError, "retries must be an int"),
        ({"timeout": 0}, ValueError, "timeout must be a number of seconds above 0"),
        ({"timeout": -3}, ValueError, "timeout"),
        ({"timeout": math.nan}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout must be a number, not str"),
        ({"nout": -1}, ValueError, "nout must not be negative"),
        ({"nout": "2"}, TypeError, "nout must be an int"),
        ({"priority": 1.0}, TypeError, "priority must be an int"),
        ({"name": ""}, ValueError, "name must not be empty"),
        ({"name": 3}, TypeError, "name must be a str"),
        ({"meta": 1}, TypeError, "meta must be True or False"),
        ({"persist": None}, TypeError, "persist must be True or False"),
        ({"resources": ["gpu"]}, TypeError, "resources must be a dict"),
        ({"resources": {"gpu": -1}}, ValueError, r"resources\['gpu'\] must be 0 or more"),
        ({"resources": {"gpu": "x"}}, TypeError, r"resources\['gpu'\] must be a number"),
        ({"labels": [1]}, TypeError, "labels must be a str"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        delayed(add, **options)
    with pytest.raises(error, match=text):
        delayed(add)(1).options(**options)


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="no option 'retry'; options are name, meta"):
        five().options(retry=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        delayed(add, retry=1)  # type: ignore[call-overload]


# Operators.

BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
    divmod, operator.pow, operator.lshift, operator.rshift, operator.and_, operator.or_,
    operator.xor, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip


@pytest.mark.parametrize("function", BINARY)
def test_binary_operators_both_ways(function: Any) -> None:
    node = five()
    for left, right in ((node, 2), (2, node), (node, node)):
        result = function(left, right)
        assert type(result) is Delayed
        assert serial(result) == function(serial(left), serial(right))


@pytest.mark.parametrize(
    "function", [operator.neg, operator.pos, abs, operator.invert, round, math.trunc, math.floor,
                 math.ceil],
)  # fmt: skip
def test_unary_operators(function: Any) -> None:
    result = function(five())
    assert type(result) is Delayed
    assert serial(result) == function(5)


def test_matrix_product_and_arrays_on_the_left() -> None:
    matrix = np.array([[1, 2], [3, 4]])
    node = delayed(np.array)([[0, 1], [1, 0]])
    assert serial(node @ matrix).tolist() == [[3, 4], [1, 2]]
    assert serial(matrix @ node).tolist() == [[2, 1], [4, 3]]
    total = matrix + node
    assert type(total) is Delayed
    assert serial(total).tolist() == [[1, 3], [4, 4]]
    assert serial(np.float64(2) * five()) == 10


def test_power_and_rounding_with_further_arguments() -> None:
    assert serial(pow(five(), 3, 7)) == 6
    assert serial(round(delayed(float)("1.2345"), 2)) == 1.23


def test_items_slices_and_attributes() -> None:
    items = delayed(list)(range(10))
    assert serial(items[3]) == 3
    assert serial(items[five()]) == 5
    assert serial(items[1:3]) == [1, 2]
    assert serial(items[1 : five()]) == [1, 2, 3, 4]
    assert serial(delayed(complex)(3, 4).imag) == 4


def test_methods_of_values_and_values_that_are_functions() -> None:
    account = delayed(Account)(10)
    node = account.minus(five(), twice=True)
    assert serial(node) == 0
    assert node._call.__name__ == "call_method"
    assert serial(delayed(functools.partial)(add, 2)(five())) == 7


def test_nout_unpacks() -> None:
    quotient, rest = delayed(divmod, nout=2)(17, 5)
    assert serial([quotient, rest]) == [3, 2]
    assert serial(list(divmod(five(), 3))) == [1, 2]
    node = delayed(divmod, nout=2)(17, 5)
    assert len(node) == 2
    assert serial(node[-1]) == 2
    assert list(delayed(tuple, nout=0)()) == []
    for wrong in (2, -3):
        with pytest.raises(IndexError, match="nout=2"):
            _ = node[wrong]


@pytest.mark.parametrize(
    "use",
    [
        bool, int, float, complex, range, operator.index,
        lambda d: 1 if d else 2, lambda d: d in d, lambda d: [1, 2][d], lambda d: not d,
    ],
)  # fmt: skip
def test_unknown_values_can_not_steer_code(use: Any) -> None:
    node = five()
    with pytest.raises(TypeError, match=rf"value of {node.key} isn't known before it has run"):
        use(node)


@pytest.mark.parametrize("use", [iter, list, len, reversed, lambda d: [*d]])
def test_unknown_lengths_say_nout(use: Any) -> None:
    with pytest.raises(TypeError, match="nout=k"):
        use(five())


def test_it_can_not_be_changed() -> None:
    node = five()
    with pytest.raises(AttributeError):
        node.key = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        node.anything = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        node[0] = 1  # type: ignore[index]


def test_protocols_are_not_taken_for_attributes() -> None:
    node = five()
    for name in ("__array__", "__len_hint__", "_repr_png_", "_ipython_display_"):
        assert not hasattr(node, name)
    assert copy.copy(node) is node
    assert copy.deepcopy([node])[0] is node


# Pickling.


def test_pickles_come_back_as_the_same_node_here() -> None:
    first = five()
    second = delayed(add)(first, 1)
    loaded = cloudpickle.loads(cloudpickle.dumps([first, {"k": second}]))
    assert loaded[0] is first
    assert loaded[1]["k"] is second


def test_pickles_are_new_nodes_elsewhere_and_shared_ones_stay_one() -> None:
    shared = delayed(g)(1, 2)
    data = pickle.dumps([shared + 1, shared * 2, shared])
    code = (
        "import pickle, sys\n"
        "from tests.graphs import serial\n"
        "a, b, c = pickle.load(sys.stdin.buffer)\n"
        "assert a._args[0] is b._args[0] is c\n"
        "print(serial([a, b, c]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, timeout=60
    )
    assert done.stdout == b"[4, 6, 3]\n"


def test_deep_graphs_and_many_paths_can_be_pickled() -> None:
    node = delayed(f)(0)
    for _ in range(20_000):
        node = delayed(f)(node)
    assert pickle.loads(pickle.dumps(node)) is node
    rungs, _ = ladder(200)
    assert len(pickle.dumps(rungs)) < 100_000


def test_functions_can_be_pickled() -> None:
    loaded = cloudpickle.loads(cloudpickle.dumps(decorated))
    assert type(loaded) is DelayedFunction
    assert serial(loaded(3)) == 6
    assert loaded._options == decorated._options
    method = pickle.loads(pickle.dumps(Account(3))).plus
    assert serial(method(1)) == 4


# Cost.


def test_the_import_is_light() -> None:
    code = (
        "import sys\n"
        "import dagsched.delayed\n"
        "heavy = {'numpy', 'zmq', 'networkx', 'msgspec', 'redis', 'cloudpickle'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"[]\n"


def test_nothing_is_looked_into_when_a_call_is_written_down() -> None:
    class Touchy:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __hash__(self) -> int:
            raise AssertionError

    touchy = Touchy()
    node = delayed(f)(touchy, key=touchy)
    assert object.__getattribute__(node, "_args")[0] is touchy
