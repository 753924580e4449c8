"""What a store says of an environment and its runs, for whoever resumes or lists them.

Responsible for finding each run in one of its two places: its journal, or the results of runs that
are over. Nothing is changed.
"""

from dagsched.errors import StoreUnavailable, VersionMismatch
from dagsched.metastore.fold import Entry, JournalState, fold_entries
from dagsched.metastore.keys import ENVIRONMENT_RUN
from dagsched.metastore.port import MetaStore


def read_environment(store: MetaStore) -> JournalState:
    """The environment's own journal: `JournalState.environment` and ``nodes``, where known.

    Raises:
        StoreUnavailable, VersionMismatch: it can't be read.
    """
    return _read(store, ENVIRONMENT_RUN)


def read_run(store: MetaStore, run: int, *, with_records: bool = False) -> JournalState | None:
    """All that is known of a run; None: nothing is.

    Args:
        store: of its environment.
        run: its number.
        with_records: whether `JournalState.records` is wanted.

    Raises:
        StoreUnavailable: the store is away, or the journal is damaged in its middle.
        VersionMismatch: a newer dagsched wrote it.
    """
    data = store.result(run)
    if data is not None:
        return fold_entries(_name(run), [Entry(1, data)], run=run, with_records=with_records)
    state = _read(store, run, with_records=with_records)
    return None if state.submitted is None and state.dropped is None else state


def read_runs(store: MetaStore) -> list[JournalState]:
    """All runs of the environment, in the order of their numbers.

    One that can't be read has the state ``unreadable`` and says why in `JournalState.error`.

    Raises:
        StoreUnavailable: the store is away.
    """
    numbers = sorted({*store.runs(), *store.results()} - {ENVIRONMENT_RUN})
    states = [_readable(store, run) for run in numbers]
    return [state for state in states if state is not None]


def _readable(store: MetaStore, run: int) -> JournalState | None:
    try:
        return read_run(store, run)
    except (StoreUnavailable, VersionMismatch) as error:
        store.ping()  # if it is the store that can't be read, that is no matter of this run
        return JournalState(_name(run), run=run, state="unreadable", error=error)


def _read(store: MetaStore, run: int, *, with_records: bool = False) -> JournalState:
    return fold_entries(_name(run), store.read(run), run=run, with_records=with_records)


def _name(run: int) -> str:
    return "the environment's" if run == ENVIRONMENT_RUN else f"run {run}"
