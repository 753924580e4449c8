"""What travels and how, what does not and what is said of it."""

import dataclasses
import functools
import io
import operator
import pickle
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from dagsched import serialize
from dagsched.brokers.code import PickledEntry, RunCode, SharedEntry
from dagsched.brokers.objects.layout import read_header
from dagsched.entries import Slot
from dagsched.errors import SerializationError
from dagsched.serialize import (
    dump_constant,
    dump_entries,
    dump_exception,
    dump_function,
    dump_inline,
    dump_value,
    find_unpicklable,
    load_exception,
    load_value,
)


def back(value: object) -> object:
    dumped = dump_value(value)
    assert dumped.size_bytes == len(dumped.stream) + sum(map(len, dumped.buffers))
    return load_value(dumped.stream, [bytearray(buffer) for buffer in dumped.buffers])


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0


class TestValues:
    @pytest.mark.parametrize(
        "value",
        [None, 5, "ä", b"x", 1.5, 2j, True, [1, [2]], {"a": (1,)}, {3}, Point(1, [2]), b"", "",
         b"z" * 100_000, bytearray(b"q" * 100_000), bytearray(b"s"), 2**200],
        ids=lambda value: type(value).__name__,
    )  # fmt: skip
    def test_round_trip(self, value: object) -> None:
        got = back(value)
        assert got == value
        assert type(got) is type(value)

    @pytest.mark.parametrize(
        "array",
        [np.arange(1000), np.arange(1000)[::3], np.asfortranarray(np.ones((30, 40))),
         np.empty((0, 4)), np.array([{}, 1], dtype=object), np.zeros(100, "i4,f8"),
         np.ma.masked_array([1, 2, 3], [0, 1, 0]), np.float32(3)],
    )  # fmt: skip
    def test_arrays(self, array: np.ndarray) -> None:
        got = back(array)
        assert type(got) is type(array)
        assert got.dtype == array.dtype
        assert got.tolist() == array.tolist()
        assert got.flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous

    def test_large_data_is_not_copied(self) -> None:
        array = np.arange(100_000)
        (buffer,) = dump_value({"a": array}).buffers
        assert np.shares_memory(np.frombuffer(buffer, array.dtype), array)
        data = b"z" * 100_000
        dumped = dump_value(data)
        assert len(dumped.stream) < 200
        assert dumped.buffers[0].obj is data

    def test_loaded_arrays_use_the_given_memory(self) -> None:
        dumped = dump_value(np.zeros(1000))
        memory = bytearray(dumped.buffers[0])
        array = load_value(dumped.stream, [memory])
        array[0] = 1.0
        assert memory[:8] == np.float64(1.0).tobytes()

    def test_small_buffers_stay_in_the_stream(self) -> None:
        assert dump_value([np.arange(10)] * 3).buffers == ()
        assert len(dump_value([np.arange(10), np.arange(1000)]).buffers) == 1

    def test_functions_and_classes_of_main_travel_by_value(self) -> None:
        module: dict[str, object] = {"__name__": "__main__"}
        exec("class Local:\n    def hi(self):\n        return 42", module)
        value = module["Local"]()  # type: ignore[operator]
        stream = dump_inline([value])
        assert b"hi" in stream
        assert pickle.loads(stream)[0].hi() == 42

    def test_constant_has_the_layout(self) -> None:
        data = dump_constant([np.arange(500), "x"])
        layout = read_header(data, len(data))
        assert layout.lengths == [4000]
        view = memoryview(data)
        stream = view[layout.stream_offset : layout.stream_offset + layout.stream_bytes]
        array, text = load_value(stream, [view[o : o + 4000] for o in layout.offsets])
        assert array.tolist() == list(range(500))
        assert text == "x"


class Locked:
    def __init__(self) -> None:
        self.fine = 1
        self.lock = threading.Lock()


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: object) -> None:
        self.inner = inner


def opened(mode: str) -> object:
    return open(__file__, mode)  # closed by the test


class Wrong:
    def __reduce__(self) -> object:
        raise RuntimeError("no")


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "path", "kind", "advice"),
        [
            (lambda: [1, {"x": Locked()}], "result[1]['x'].lock", "lock", "inside the task"),
            (lambda: (i for i in ()), "result", "generator", "return a list"),
            (
                lambda: {"f": opened("r")},
                "result['f']",
                "TextIOWrapper",
                "open it inside",
            ),
            (lambda: opened("rb"), "result", "BufferedReader", "open it inside"),
            (lambda: (0, socket.socket()), "result[1]", "socket", "connect inside"),
            (lambda: Point(1, Slotted(threading.Lock())), "result.y.inner", "lock", "create it"),
            (lambda: functools.partial(print, Locked()), "result.args[0].lock", "lock", "create"),
            (lambda: [Wrong()], "result[0]", "Wrong", "__reduce__"),
        ],
    )
    def test_path_type_and_advice(self, make, path: str, kind: str, advice: str) -> None:
        value = make()
        with pytest.raises(SerializationError) as caught:
            dump_value(value)
        assert caught.value.path == path
        assert str(caught.value).startswith(f"{path} (a {kind}) can't travel")
        assert advice in str(caught.value)
        assert find_unpicklable(value) == path
        close(value)

    def test_closure_of_a_function(self) -> None:
        lock = threading.Lock()
        with pytest.raises(SerializationError) as caught:
            dump_function(lambda: bool(lock))
        assert caught.value.path == "<lambda>.lock"

    def test_deep_and_wide_values_end(self) -> None:
        value: object = threading.Lock()
        for _ in range(200):
            value = [value]
        with pytest.raises(SerializationError) as caught:
            dump_value(value)
        assert caught.value.path == "result" + "[0]" * 49
        wide = [*range(5000), threading.Lock()]
        with pytest.raises(SerializationError) as caught:
            dump_value(wide)
        assert caught.value.path == "result"

    def test_string_buffers_still_travel(self) -> None:
        assert pickle.loads(dump_inline(io.BytesIO(b"ab"))).getvalue() == b"ab"

    def test_entries_name_the_argument(self) -> None:
        bad = {"args": (Slot(0), 1), "kwargs": {"key": [Locked()]}}
        with pytest.raises(SerializationError) as caught:
            dump_entries([(1,), bad], plain=False)
        assert caught.value.path == "key[0].lock"
        with pytest.raises(SerializationError) as caught:
            dump_entries([[[None, Locked()], [(0, 0)]]], plain=False)
        assert caught.value.path == "args[1].lock"


def close(value: object) -> None:
    for part in value if isinstance(value, tuple) else [value]:
        for item in part.values() if isinstance(part, dict) else [part]:
            if hasattr(item, "close"):
                item.close()


class TestEntries:
    def load(self, data: bytes) -> list[object]:
        code = RunCode()
        code.add_chunk(0, data)
        return code.entries_of(list(range(64)))

    def test_plain(self) -> None:
        entries = [None, (1, "a"), [[None, 2], [(0, 0)]]] + [None] * 61
        assert pickle.loads(dump_entries(entries, plain=True)) == entries
        assert pickle.loads(dump_entries(entries, plain=False)) == entries
        assert self.load(dump_entries(entries, plain=True)) == entries

    def test_each_call_gets_its_own_mutable_arguments(self) -> None:
        shared = [1, 2]
        large = {i: [i] for i in range(500)}
        entries: list[object] = [(shared,), (shared,), (1, large), (2, large)] + [None] * 60
        loaded = self.load(dump_entries(entries, plain=False))
        assert [type(e) for e in loaded[:4]] == [
            PickledEntry,
            PickledEntry,
            SharedEntry,
            SharedEntry,
        ]
        loaded[0].make()[0].append(3)
        assert loaded[0].make() == loaded[1].make() == ([1, 2],)
        loaded[2].make()[1][0].append(9)
        assert loaded[2].make() == (1, large)
        assert loaded[3].make() == (2, large)

    def test_what_tasks_share_is_sent_once(self) -> None:
        table = {i: str(i) for i in range(2000)}
        one = len(dump_entries([(0, table)], plain=False))
        assert len(dump_entries([(i, table) for i in range(64)], plain=False)) < 1.2 * one

    def test_general_entry_with_plain_arguments_is_used_as_it_is(self) -> None:
        entry = {"args": (Slot(0), 1), "kwargs": {"k": "v"}}
        loaded = self.load(dump_entries([entry] + [None] * 63, plain=False))
        assert loaded[0].make() == entry
        assert loaded[0].make() is loaded[0].make()


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}{two}")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def caught(function: object, *args: object) -> BaseException:
    try:
        function(*args)  # type: ignore[operator]
    except BaseException as error:  # noqa: BLE001 - it is what is asked for
        return error
    raise AssertionError("nothing was raised")


class TestExceptions:
    def test_comes_back_as_itself(self) -> None:
        dumped = dump_exception(caught(operator.truediv, 1, 0))
        assert dumped.type_name == "ZeroDivisionError"
        assert dumped.text == "division by zero"
        error = load_exception(dumped.data)
        assert type(error) is ZeroDivisionError
        assert error.args == ("division by zero",)

    def test_traceback_begins_with_user_code(self) -> None:
        namespace: dict[str, object] = {}
        source = "def fail():\n    raise KeyError('k')\n"
        exec(compile(source, "user.py", "exec"), namespace)
        own = str(Path(serialize.__file__).with_name("somewhere.py"))
        exec(compile("def call(f):\n    f()\n", own, "exec"), namespace)
        error = caught(namespace["call"], namespace["fail"])
        error = error.with_traceback(error.__traceback__.tb_next)  # without the test's own frame
        text = dump_exception(error).traceback_text
        assert text == (
            "Traceback (most recent call last):\n"
            '  File "user.py", line 2, in fail\n'
            "KeyError: 'k'\n"
        )

    def test_what_does_not_load_again_is_text(self) -> None:
        dumped = dump_exception(Odd(1, 2))
        assert dumped.data == b""
        assert dumped.type_name.endswith("test_serialize.Odd")
        assert dumped.text == "12"
        assert dump_exception(ValueError(threading.Lock())).data == b""

    def test_text_that_fails(self) -> None:
        dumped = dump_exception(Mute())
        assert dumped.text == "<Mute that can't be printed>"
        assert dumped.data == b"", "as itself it would fail wherever it is shown"
        assert "Mute" in dumped.traceback_text

    def test_large_arguments_are_not_printed(self) -> None:
        class Loud(bytearray):
            def __repr__(self) -> str:
                raise AssertionError("printed")

        dumped = dump_exception(ValueError("small", Loud(2 << 20)))
        assert dumped.text.startswith("'small', <a large ")
        assert dumped.text.endswith("Loud>")
        assert dumped.data == b""

    def test_cycle_of_causes(self) -> None:
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        dumped = dump_exception(one)
        assert type(load_exception(dumped.data)) is ValueError
        assert "ValueError: one" in dumped.traceback_text
        assert "ValueError: two" in dumped.traceback_text

    @pytest.mark.parametrize(
        "argument", ["x" * 50_000_000, [["y" * 1000] * 1000] * 100, bytearray(9_000_000)]
    )
    def test_huge_arguments_stay_here(self, argument: object) -> None:
        dumped = dump_exception(ValueError(argument), limit_bytes=100_000)
        assert dumped.data == b""
        assert len(dumped.text) < 5_000
        assert len(dumped.traceback_text) < 70_000

    def test_not_only_exceptions(self) -> None:
        error = load_exception(dump_exception(SystemExit(3)).data)
        assert type(error) is SystemExit
        assert error.code == 3

    def test_unloadable_is_refused(self) -> None:
        with pytest.raises(SerializationError, match="can't be loaded here"):
            load_exception(b"garbage")
        with pytest.raises(SerializationError, match="what came as an exception is a int"):
            load_exception(pickle.dumps(5))


class TestFunctions:
    def test_by_reference_and_by_value(self) -> None:
        assert pickle.loads(dump_function(operator.add)) is operator.add
        assert len(dump_function(Path.joinpath)) < 100
        base = 10
        assert pickle.loads(dump_function(lambda x: x + base))(5) == 15
