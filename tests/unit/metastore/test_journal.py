"""The journal's thread over a store that can be told to fail; nothing here is another process."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.fold import Entry, fold_entries
from dagsched.metastore.journal import Journal, JournalHealth
from dagsched.metastore.memory import MemoryStore
from dagsched.metastore.port import Batch, Refusal, Settlement
from dagsched.metastore.reading import read_run, read_runs
from dagsched.metastore.records import PART_BYTES, Ended, Outputs, Placed, Record, Submitted

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
        self.expiries: list[int | None] = []

    def open(self) -> None:
        self.open_count += 1
        self.ping()

    def ping(self) -> None:
        if self.trouble:
            self.tried.set()
            raise StoreUnavailable(self.trouble)

    def settle(self, settlement: Settlement) -> None:
        self.ping()
        super().settle(settlement)

    def lengths(self, runs: Sequence[int]) -> list[int]:
        self.ping()
        return super().lengths(runs)

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        self.ping()
        refusals = super().append(batches)
        if self.answers_lost:
            self.answers_lost -= 1
            raise StoreUnavailable("the answer was lost")
        self.exchange_sizes.append(len(batches))
        self.expiries += [batch.expiry_s for batch in batches]
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


def test_too_many_bytes_tear_only_their_run_and_it_is_asked_for_when_the_store_is_back(
    store: TroubledStore, torn: list[int]
) -> None:
    config = Config(journal_batch_s=0.001, journal_bytes_max=10_000)
    journal = Journal(store, config, on_torn=torn.append)
    journal.open()
    assert journal.flush(10)
    store.trouble = "away"
    journal.put(1, Submitted(0, None, (bytes(9000),)))
    journal.put(2, Submitted(0, None, (bytes(9000),)))
    assert store.tried.wait(10)
    assert not journal.flush(0.05)
    assert torn == []
    store.trouble = ""
    assert journal.flush(10)
    assert journal.state[0] == "degraded"
    assert fold_entries("s", store.read(1)).state == "open"
    assert store.read(2) == []
    journal.restart(2, [Submitted(0, None, (bytes(9000),))])
    assert journal.flush(10)
    assert journal.close()
    assert torn == [2]
    assert journal.state == ("ok", "")
    assert fold_entries("s", store.read(2)).state == "open"


def test_a_run_larger_than_may_wait_is_not_asked_for_again_and_again(
    store: TroubledStore, torn: list[int]
) -> None:
    config = Config(journal_batch_s=0.001, journal_bytes_max=10_000)
    journal = Journal(store, config, on_torn=torn.append)
    journal.open()
    journal.put(1, Submitted(0, None, (bytes(11_000),)))
    journal.put(2, place(0))
    assert journal.flush(10)
    assert journal.state == ("degraded", "run 1 is larger than Config.journal_bytes_max")
    journal.finish(1, [Ended("done")], is_whole=False)
    assert journal.flush(10)
    assert journal.close()
    assert journal.state == ("ok", "")
    assert torn == []
    assert placements(store, 2) == [0]


def test_what_waits_for_a_store_that_never_comes_back_is_bounded(store: TroubledStore) -> None:
    config = Config(
        journal_batch_s=0.001, journal_bytes_max=100_000, results_max=20, results_bytes_max=50_000
    )
    journal = Journal(store, config)
    journal.open()
    assert journal.flush(10)
    store.trouble = "away for good"
    for run in range(1, 1000):
        journal.put(run, Submitted(0, None, (bytes(3000),)))
        if run % 3 == 0:
            journal.flush(0.0)  # has it encode what waits
        if run % 2:
            journal.finish(run, [Submitted(0, None, ()), Ended("done")], is_whole=run % 4 == 1)
    assert not journal.flush(0.2)
    waiting = sum(len(entry.data) for entry in journal._pending if isinstance(entry, Batch))
    assert 0 < waiting <= 100_000
    assert len(journal._results) <= 20
    untold = journal._results.untold()
    assert untold is not None
    assert len(untold.kept) <= 20
    journal.close(flush_timeout_s=0)


# --- runs that are over ---------------------------------------------------------------------------


def test_a_run_that_began_and_ended_between_two_looks_costs_no_stream(
    store: TroubledStore,
) -> None:
    encoded: list[Record] = []

    def convert(record: Record) -> Record:
        encoded.append(record)
        return record

    journal = Journal(store, CONFIG, convert=convert)
    rest = [Submitted(0, None, (), None, b"client"), Outputs(1, (), ()), Ended("done")]
    journal.put(7, Submitted(0, None, (b"plan",), None, b"client"))
    journal.put(7, place(0))
    journal.finish(7, rest, is_whole=False)
    journal.open()
    assert journal.close()
    assert encoded == rest
    assert store.exchange_sizes == []
    assert (store.runs(), store.results()) == ([], [7])
    state = read_run(store, 7)
    assert state is not None
    assert (state.run, state.state, state.submitted) == (7, "done", rest[0])


def test_a_finished_run_leaves_its_result_and_not_its_journal(
    journal: Journal, store: TroubledStore
) -> None:
    journal.put(1, Submitted(0, None, (b"plan",)))
    journal.put(2, Submitted(0, None, (b"plan",)))
    assert journal.flush(10)
    assert store.runs() == [1, 2]
    journal.finish(1, [Submitted(0, None, ()), Ended("failed")], is_whole=False)
    assert journal.flush(10)
    assert (store.runs(), store.results()) == ([2], [1])
    assert [(state.run, state.state) for state in read_runs(store)] == [(1, "failed"), (2, "open")]
    journal.finish(2, [], is_whole=False)
    assert journal.flush(10)
    assert (store.runs(), store.results()) == ([], [1])


def test_a_finished_run_that_needs_its_plan_keeps_its_journal(
    journal: Journal, store: TroubledStore
) -> None:
    records: list[Record] = [Submitted(0, None, (b"plan",)), place(0), Ended("lost")]
    for record in records[:2]:
        journal.put(1, record)
    assert journal.flush(10)
    store.expiries.clear()
    journal.finish(1, [records[0], records[2]], is_whole=True)
    assert journal.flush(10)
    state = fold_entries("s", store.read(1))
    assert (state.state, sorted(state.placements), state.next_position) == ("lost", [0], 3)
    assert store.expiries == [CONFIG.result_expiry_s]


def test_the_journal_of_a_finished_run_is_written_anew_if_it_is_torn(
    journal: Journal, store: TroubledStore, torn: list[int]
) -> None:
    journal.put(1, place(0))
    assert journal.flush(10)
    store.drop_all()
    journal.put(1, place(1))
    assert journal.flush(10)
    assert torn == [1]
    journal.finish(1, [Submitted(0, None, (b"plan",)), Ended("lost")], is_whole=True)
    assert journal.flush(10)
    state = fold_entries("s", store.read(1))
    assert (state.state, state.record_count) == ("lost", 2)
    assert journal.state == ("ok", "")


def test_a_large_result_stands_in_a_stream(journal: Journal, store: TroubledStore) -> None:
    large = Submitted(0, None, (), None, bytes(2 * PART_BYTES))
    journal.put(1, place(0))
    assert journal.flush(10)
    journal.finish(1, [large, Ended("done")], is_whole=False)
    assert journal.flush(10)
    assert (store.runs(), store.results()) == ([1], [])
    state = read_run(store, 1)
    assert state is not None
    assert (state.state, state.submitted, state.placements) == ("done", large, {})


def test_the_oldest_results_go_first(store: TroubledStore) -> None:
    config = Config(journal_batch_s=0.001, results_max=3)
    journal = Journal(store, config)
    journal.open()
    for run in range(1, 7):
        journal.finish(run, [Ended("done")], is_whole=run % 2 == 0)
        assert journal.flush(10)
    assert journal.close()
    assert (store.runs(), store.results()) == ([4, 6], [5])


def test_a_finished_run_that_goes_on_is_not_dropped_as_an_old_result(store: TroubledStore) -> None:
    journal = Journal(store, Config(journal_batch_s=0.001, results_max=1))
    journal.open()
    records: list[Record] = [Submitted(0, None, (b"plan",)), Ended("done")]
    journal.put(1, records[0])
    journal.finish(1, records, is_whole=True)
    assert journal.flush(10)
    journal.resume(1, fold_entries("s", store.read(1)).next_position)
    journal.put(1, place(0))
    for run in (2, 3):
        journal.finish(run, [Ended("done")], is_whole=False)
        assert journal.flush(10)
    assert placements(store, 1) == [0]
    journal.finish(1, [*records[:1], Ended("done")], is_whole=True)
    assert journal.flush(10)
    assert (store.runs(), store.results()) == ([1], [])
    assert journal.close()


# --- the store is looked after while a run goes on ------------------------------------------------


def test_a_lost_journal_is_noticed_though_nothing_is_put(
    store: TroubledStore, torn: list[int]
) -> None:
    asked = threading.Event()

    def on_torn(run: int) -> None:
        torn.append(run)
        asked.set()

    journal = Journal(store, Config(journal_batch_s=0.001, journal_check_s=0.01), on_torn=on_torn)
    journal.open()
    journal.put(1, place(0))
    assert journal.flush(10)
    store.drop_all()
    assert asked.wait(10)
    assert journal.state[0] == "degraded"
    journal.restart(1, [place(0)])
    assert journal.flush(10)
    assert journal.state == ("ok", "")
    assert placements(store) == [0]
    journal.close()
    assert torn == [1]


def test_a_store_that_comes_back_without_its_last_entries_is_noticed(
    journal: Journal, store: TroubledStore, torn: list[int]
) -> None:
    for subtree in range(3):
        journal.put(1, place(subtree))
        assert journal.flush(10)
    store.truncate(1, 3)
    journal.put(1, place(3))
    assert journal.flush(10)
    assert torn == [1]
    journal.restart(1, [place(subtree) for subtree in range(4)])
    assert journal.flush(10)
    assert placements(store) == [0, 1, 2, 3]


def test_a_store_that_was_away_is_not_well_before_it_is_known_what_it_lost(
    journal: Journal, store: TroubledStore, told: list[JournalHealth], torn: list[int]
) -> None:
    journal.put(1, place(0))
    journal.put(2, place(0))
    assert journal.flush(10)
    journal.put(1, place(1))
    assert journal.flush(10)
    store.trouble = "away"
    journal.put(2, place(1))
    assert not journal.flush(0.1)
    store.truncate(1, 2)
    store.trouble = ""
    assert journal.flush(10)
    assert torn == [1]
    assert [health.state for health in told] == ["degraded", "degraded"]
    assert "run 1 has to be written anew: the store has lost it" in told[-1].reason
    journal.restart(1, [place(0), place(1)])
    assert journal.flush(10)
    assert (placements(store, 1), placements(store, 2)) == ([0, 1], [0, 1])
    assert journal.state == ("ok", "")


def test_one_warning_for_a_store_that_comes_and_goes(
    journal: Journal, store: TroubledStore, caplog: pytest.LogCaptureFixture
) -> None:
    for trouble in ["one", "two", "three"]:
        store.trouble = trouble
        journal.put(1, place(0))
        assert not journal.flush(0.1)
        assert journal.state == ("degraded", trouble)
        store.trouble = ""
        assert journal.flush(10)
        assert journal.state == ("ok", "")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the journal is degraded, so runs could not be resumed now: one"]


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
    asked_s = time.monotonic()
    assert not journal.flush(10)
    assert not journal.flush(10)
    assert time.monotonic() - asked_s < 5
    assert journal.state == (
        "degraded",
        "the journal's thread has ended: RuntimeError('defect')",
    )
    assert not journal.close()
