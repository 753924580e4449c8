"""The journal's thread over a store that can be told to fail; nothing here is another process."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore import journal as journal_module
from dagsched.metastore.fold import Entry, fold_entries
from dagsched.metastore.journal import Journal, JournalHealth
from dagsched.metastore.memory import MemoryStore
from dagsched.metastore.port import Batch, Refusal
from dagsched.metastore.records import Ended, Placed, Record, Submitted

CONFIG = Config(journal_batch_s=0.001, journal_queue_max=1000)


class TroubledStore(MemoryStore):
    """Fails while `trouble` says so, and can lose an answer after it did what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble = ""
        self.answers_lost = 0
        self.tried = threading.Event()
        self.exchange_sizes: list[int] = []
        self.open_count = 0

    def open(self) -> None:
        self.open_count += 1
        self.ping()

    def ping(self) -> None:
        if self.trouble:
            self.tried.set()
            raise StoreUnavailable(self.trouble)

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        self.ping()
        refusals = super().append(batches)
        if self.answers_lost:
            self.answers_lost -= 1
            raise StoreUnavailable("the answer was lost")
        self.exchange_sizes.append(len(batches))
        return refusals


@pytest.fixture
def store() -> TroubledStore:
    return TroubledStore()


@pytest.fixture
def told() -> list[JournalHealth]:
    return []


@pytest.fixture
def torn() -> list[int]:
    return []


@pytest.fixture
def journal(store: TroubledStore, told: list[JournalHealth], torn: list[int]) -> Iterator[Journal]:
    made = Journal(store, CONFIG, on_health=told.append, on_torn=torn.append)
    made.open()
    yield made
    made.close()


def placements(store: MemoryStore, run: int = 1) -> list[int]:
    return sorted(fold_entries("s", store.read(run)).placements)


def place(subtree: int) -> Record:
    return Placed(1, ((subtree, 2, 1),))


def test_records_put_together_are_appended_together(store: TroubledStore) -> None:
    journal = Journal(store, CONFIG)
    for subtree in range(500):
        journal.put(1 + subtree % 2, place(subtree))
    journal.open()
    assert journal.close()
    assert store.exchange_sizes == [2]
    assert placements(store, 1) == list(range(0, 500, 2))
    assert placements(store, 2) == list(range(1, 500, 2))


def test_order_is_kept(journal: Journal, store: TroubledStore) -> None:
    for state in ["a", "b", "c"]:
        journal.put(1, Ended(state))
        assert journal.flush(10)
    assert fold_entries("s", store.read(1)).state == "c"
    assert [entry.position for entry in store.read(1)] == [1, 2, 3]


def test_a_store_that_is_away_is_caught_up_with(
    journal: Journal, store: TroubledStore, told: list[JournalHealth]
) -> None:
    assert journal.flush(10)
    store.trouble = "gone fishing"
    for subtree in range(100):
        journal.put(1, place(subtree))
    assert store.tried.wait(10)
    assert not journal.flush(0.05)
    assert journal.state == ("degraded", "gone fishing")
    store.trouble = ""
    assert journal.flush(10)
    assert placements(store) == list(range(100))
    assert told == [
        JournalHealth("degraded", "gone fishing", 0),
        JournalHealth("ok", "", 0),
    ]
    assert store.open_count >= 1


def test_an_append_whose_answer_was_lost_is_not_doubled(
    journal: Journal, store: TroubledStore
) -> None:
    for subtree in range(20):
        store.answers_lost = 1
        journal.put(1, place(subtree))
        assert journal.flush(10)
    state = fold_entries("s", store.read(1))
    assert state.record_count == 20
    assert sorted(state.placements) == list(range(20))


def test_overflow_is_counted_told_and_mended(
    store: TroubledStore, told: list[JournalHealth], torn: list[int]
) -> None:
    journal = Journal(store, CONFIG, on_health=told.append, on_torn=torn.append)
    records: list[Record] = [Submitted(0, None, (b"plan",))]
    records += [place(subtree) for subtree in range(1200)]
    for record in records:
        journal.put(1, record)
    journal.put(2, Ended("done"))  # the queue is full for every run
    journal.open()
    assert journal.flush(10)
    assert sorted(torn) == [1, 2]
    assert journal.health.state == "degraded"
    assert "more records wait than may" in journal.health.reason
    assert journal.health.dropped_count == 202
    journal.restart(1, records)
    journal.restart(2, [Ended("done")])
    journal.put(1, Ended("done"))
    assert journal.close()
    assert journal.health.state == "ok"
    state = fold_entries("s", store.read(1))
    assert (state.record_count, state.state) == (1202, "done")
    assert fold_entries("s", store.read(2)).state == "done"


def test_too_many_bytes_tear_only_their_run(
    journal: Journal, store: TroubledStore, torn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PENDING_BYTES_MAX", 10_000)
    assert journal.flush(10)
    store.trouble = "away"
    journal.put(1, Submitted(0, None, (bytes(9000),)))
    journal.put(2, Submitted(0, None, (bytes(9000),)))
    assert store.tried.wait(10)
    assert not journal.flush(0.05)
    assert torn == [2]
    store.trouble = ""
    assert journal.flush(10)
    assert fold_entries("s", store.read(1)).state == "open"
    assert store.read(2) == []


def test_a_stream_that_vanished_is_written_anew(
    journal: Journal, store: TroubledStore, torn: list[int]
) -> None:
    journal.put(1, place(0))
    assert journal.flush(10)
    store.drop_all()
    journal.put(1, place(1))
    journal.put(2, place(5))
    assert journal.flush(10)
    assert torn == [1]
    journal.restart(1, [place(0), place(1)])
    assert journal.flush(10)
    assert placements(store, 1) == [0, 1]
    assert placements(store, 2) == [5]
    assert journal.state == ("ok", "")


def test_another_master_stops_this_one(journal: Journal, store: TroubledStore) -> None:
    journal.put(1, place(0))
    assert journal.flush(10)
    store.append([Batch(1, 2, b"other")])
    journal.put(1, place(1))
    assert journal.flush(10)
    journal.put(1, place(2))
    assert journal.flush(10)
    assert journal.state == ("degraded", "another master writes the journal of run 1")
    assert store.read(1)[1:] == [Entry(2, b"other")]


def test_resume_goes_on_behind_what_was_read(store: TroubledStore) -> None:
    first = Journal(store, CONFIG)
    first.open()
    first.put(1, place(0))
    assert first.close()
    position = fold_entries("s", store.read(1)).next_position
    second = Journal(store, CONFIG)
    second.resume(1, position)
    second.put(1, place(1))
    second.open()
    assert second.close()
    assert [entry.position for entry in store.read(1)] == [1, 2]
    assert placements(store) == [0, 1]


def test_a_forgotten_run_is_dropped(journal: Journal, store: TroubledStore) -> None:
    journal.put(1, place(0))
    journal.put(2, place(0))
    journal.forget(1)
    assert journal.flush(10)
    assert store.runs() == [2]
    journal.put(1, place(3))
    assert journal.flush(10)
    assert placements(store, 1) == [3]


def test_convert_runs_in_the_thread_and_may_leave_out(store: TroubledStore) -> None:
    names = set()

    def convert(item: int) -> Record | None:
        names.add(threading.current_thread().name)
        return place(item) if item % 2 else None

    journal = Journal(store, CONFIG, convert=convert)
    journal.open()
    for item in range(6):
        journal.put(1, item)
    assert journal.close()
    assert names == {"dagsched-journal"}
    assert placements(store) == [1, 3, 5]


def test_close_gives_up_a_store_that_is_away(journal: Journal, store: TroubledStore) -> None:
    store.trouble = "away"
    journal.put(1, place(0))
    assert not journal.close(flush_timeout_s=0.05)
    assert not journal.close()
    assert threading.active_count() == 1 or "dagsched-journal" not in {
        thread.name for thread in threading.enumerate()
    }


def test_close_is_noticed_however_soon_it_comes(store: TroubledStore) -> None:
    # The thread is held just before it clears its wake-up, which `close` sets meanwhile.
    journal = Journal(store, CONFIG)
    is_waking, may_clear = threading.Event(), threading.Event()

    class Held(threading.Event):
        def set(self) -> None:
            super().set()
            may_clear.set()

        def clear(self) -> None:
            is_waking.set()
            assert may_clear.wait(10)
            super().clear()

    journal._wake = Held()
    journal.open()
    assert is_waking.wait(10)
    closer = threading.Thread(target=lambda: journal.close(flush_timeout_s=0), daemon=True)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_is_told_and_no_flush_hangs(store: TroubledStore) -> None:
    def convert(item: object) -> Record:
        raise RuntimeError("defect")

    journal = Journal(store, CONFIG, convert=convert)
    journal.open()
    journal.put(1, "x")
    assert not journal.flush(10)
    assert not journal.flush(10)
    assert journal.state == (
        "degraded",
        "the journal's thread has ended: RuntimeError('defect')",
    )
    assert not journal.close()
