"""The store on a server of the Redis protocol: ``redis://``, ``rediss://``, ``unix://``.

A run's journal is a stream whose entry ids are our positions (``7-0``). So the server itself
refuses to store an entry twice, and what it holds at an id tells a repeat of ours from another
writer. That a stream has as many entries as its last position says that none was lost. Each append
is one exchange, whatever it holds. Our only commands are those of streams, sets, hashes and expiry;
no script, no scan.

The client library is imported by `open`, not with this module: to import it takes longer than to
start a server.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from dagsched.config import Config
from dagsched.errors import StoreUnavailable
from dagsched.metastore.fold import Entry
from dagsched.metastore.keys import (
    ENVIRONMENT_RUN,
    environment_member,
    environments_key,
    member_prefix,
    results_key,
    run_key,
    runs_key,
)
from dagsched.metastore.port import Batch, Refusal, Settlement, StoreInfo

_FIELD = b"d"
_PAGE_ENTRIES = 32
"""Entries read in one exchange; each may have `records.PART_BYTES`."""

_ERASE_STEP_S = 0.5
"""Each step of the last exchange, in which everything is removed."""

_Answer = TypeVar("_Answer")


class RedisStore:
    """A `MetaStore` on a server that others may share.

    Args:
        url: of the server.
        prefix: what all keys begin with.
        config: timeouts and expiry.
    """

    kind = "redis"

    def __init__(self, url: str, prefix: str, config: Config) -> None:
        self._url = url
        self._prefix = prefix
        self._config = config
        # The library's types say that each answer may be a coroutine, so they check nothing here.
        self._client: Any = None
        # Connecting and the first answer are one step each, and together may take the timeout.
        self._step_s = config.store_timeout_s / 2.5
        self._is_interrupted = False

    @property
    def address(self) -> str:
        """The server's address, without a password."""
        parts = urlsplit(self._url)
        if parts.password is None:
            return self._url
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"***@{place}"))

    def adopt(self, prefix: str) -> None:
        """Turn to another environment of the same server."""
        self._prefix = prefix

    def open(self) -> None:
        """Connect, and see that a server of the right kind answers.

        Raises:
            StoreUnavailable: it does not, in half of `store_timeout_s` for each step.
            ValueError: the URL is not one.
        """
        if self._client is None:
            self._client = self._make_client()
        self.ping()

    def close(self) -> None:
        """Disconnect; what is stored stays until it is dropped or expires."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def append(self, batches: Sequence[Batch]) -> list[Refusal]:
        """See `MetaStore.append`."""
        answers, length_by_run = self._call(lambda client: self._send(client, batches))
        refusals: list[Refusal] = []
        last: dict[int, Batch] = {}
        for batch, answer in zip(batches, answers, strict=True):
            last[batch.run] = batch
            if isinstance(answer, Exception):
                if "equal or smaller" not in str(answer):
                    raise self._unavailable(answer)
                if not self._is_stored(batch):
                    refusals.append(Refusal(batch.run, batch.position, "taken"))
        # A stream that was not there has no entries either.
        refusals += [
            Refusal(run, batch.position, "gone")
            for run, batch in last.items()
            if length_by_run[run] < batch.position
        ]
        return refusals

    def read(self, run: int) -> list[Entry]:
        """See `MetaStore.read`."""
        key = run_key(self._prefix, run)
        entries: list[Entry] = []
        while True:
            first = f"({entries[-1].position}-0" if entries else "-"
            page = self._call(partial(_page, key=key, first=first))
            for entry_id, fields in page:
                position = int(entry_id.partition(b"-")[0])
                entries.append(Entry(position, fields.get(_FIELD, b"")))
            if len(page) < _PAGE_ENTRIES:
                return entries

    def lengths(self, runs: Sequence[int]) -> list[int]:
        """See `MetaStore.lengths`."""

        def ask(client: Any) -> list[int]:
            with client.pipeline(transaction=False) as pipeline:
                for run in runs:
                    pipeline.xlen(run_key(self._prefix, run))
                answers: list[int] = pipeline.execute()
            return answers

        return self._call(ask)

    def truncate(self, run: int, position: int) -> None:
        """See `MetaStore.truncate`."""
        key = run_key(self._prefix, run)
        entries = self.read(run)
        kept = [entry for entry in entries if entry.position < position]
        if len(kept) == len(entries):
            return
        if not kept:
            self.drop(run)
            return

        def rewrite(client: Any) -> None:
            # A stream never takes an id again that it has deleted, so it is written anew.
            with client.pipeline(transaction=True) as pipeline:
                pipeline.unlink(key)
                for entry in kept:
                    pipeline.xadd(key, {_FIELD: entry.data}, id=f"{entry.position}-0")
                pipeline.expire(key, self._config.key_expiry_s)
                pipeline.execute()

        self._call(rewrite)

    def runs(self) -> list[int]:
        """See `MetaStore.runs`."""
        return sorted(
            int(name) for name in self._call(lambda client: client.smembers(runs_key(self._prefix)))
        )

    def drop(self, run: int) -> None:
        """See `MetaStore.drop`."""

        def remove(client: Any) -> None:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.unlink(run_key(self._prefix, run))
                pipeline.srem(runs_key(self._prefix), run)
                pipeline.execute()

        self._call(remove)

    def settle(self, settlement: Settlement) -> None:
        """See `MetaStore.settle`."""
        key, runs = results_key(self._prefix), runs_key(self._prefix)

        def do(client: Any) -> None:
            with client.pipeline(transaction=True) as pipeline:
                if settlement.kept:
                    pipeline.hset(key, mapping=dict(settlement.kept))
                    pipeline.expire(key, self._config.result_expiry_s)
                if settlement.forgotten:
                    pipeline.hdel(key, *settlement.forgotten)
                if settlement.dropped:
                    pipeline.unlink(*(run_key(self._prefix, run) for run in settlement.dropped))
                    pipeline.srem(runs, *settlement.dropped)
                pipeline.execute()

        self._call(do)

    def results(self) -> list[int]:
        """See `MetaStore.results`."""
        key = results_key(self._prefix)
        return sorted(int(name) for name in self._call(lambda client: client.hkeys(key)))

    def result(self, run: int) -> bytes | None:
        """See `MetaStore.result`."""
        key = results_key(self._prefix)
        found: bytes | None = self._call(lambda client: client.hget(key, run))
        return found

    def environments(self) -> list[str]:
        """See `MetaStore.environments`; those whose keys have expired are taken off the list."""
        key = environments_key(self._prefix)

        def ask(client: Any) -> list[str]:
            members = sorted(member.decode() for member in client.smembers(key))
            prefixes = [member_prefix(self._prefix, member) for member in members]
            with client.pipeline(transaction=False) as pipeline:
                for prefix in prefixes:
                    pipeline.exists(runs_key(prefix), results_key(prefix))
                counts = pipeline.execute()
            gone = [member for member, count in zip(members, counts, strict=True) if not count]
            if gone:
                client.srem(key, *gone)
            return [prefix for prefix, count in zip(prefixes, counts, strict=True) if count]

        return self._call(ask)

    def drop_all(self) -> None:
        """See `MetaStore.drop_all`; each run is in the set before its stream exists."""
        keys = [run_key(self._prefix, run) for run in self.runs()]
        own = (runs_key(self._prefix), results_key(self._prefix))

        def do(client: Any) -> None:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.unlink(*keys, *own)
                pipeline.srem(environments_key(self._prefix), environment_member(self._prefix))
                pipeline.execute()

        self._call(do)

    def erase(self) -> None:
        """See `MetaStore.erase`."""
        self.close()
        self._step_s = min(self._step_s, _ERASE_STEP_S)
        self._is_interrupted = False
        try:
            self.open()
            self.drop_all()
        finally:
            self.close()

    def interrupt(self) -> None:
        """See `MetaStore.interrupt`."""
        self._is_interrupted = True
        client = self._client
        if client is not None:
            client.connection_pool.disconnect(inuse_connections=True)

    def ping(self) -> None:
        """See `MetaStore.ping`."""
        self._call(lambda client: client.ping())

    def info(self) -> StoreInfo:
        """See `MetaStore.info`."""
        facts = self._call(lambda client: client.info())
        name = facts.get("server_name", "redis")
        version = facts.get("valkey_version") or facts.get("redis_version", "")
        return StoreInfo(
            self.kind, self.address, f"{name} {version}", int(facts.get("used_memory", 0))
        )

    def _connected(self) -> Any:
        if self._client is None:
            raise StoreUnavailable(f"the metadata store {self.address} is not open")
        return self._client

    def _make_client(self) -> Any:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # The library asks this at its first connection, importing more: see `EmbeddedStore.open`.
        importlib.metadata.version("redis")
        return redis.Redis.from_url(
            self._url,
            socket_connect_timeout=self._step_s,
            socket_timeout=self._step_s,
            retry=Retry(NoBackoff(), 0),  # the journal repeats, with what it knows of positions
            protocol=2,
            single_connection_client=False,
            max_connections=2,
        )

    def _send(self, client: Any, batches: Sequence[Batch]) -> tuple[list[Any], dict[int, int]]:
        """One exchange; the answer to each batch's XADD, errors among them, and runs' lengths."""
        expiry_by_run = {batch.run: batch.expiry_s for batch in batches}
        expiry_s = self._config.key_expiry_s
        with client.pipeline(transaction=False) as pipeline:
            pipeline.sadd(runs_key(self._prefix), *expiry_by_run)
            pipeline.expire(runs_key(self._prefix), expiry_s)
            if ENVIRONMENT_RUN in expiry_by_run:
                key = environments_key(self._prefix)
                pipeline.sadd(key, environment_member(self._prefix))
                pipeline.expire(key, expiry_s)
            wanted = []
            for batch in batches:
                key = run_key(self._prefix, batch.run)
                if batch.is_fresh:
                    pipeline.unlink(key)
                wanted.append(len(pipeline))
                pipeline.xadd(
                    key,
                    {_FIELD: batch.data},
                    id=f"{batch.position}-0",
                    nomkstream=batch.position > 1,
                )
            lengths_from = len(pipeline)
            for run in expiry_by_run:
                pipeline.xlen(run_key(self._prefix, run))
            for run, own_expiry_s in expiry_by_run.items():
                pipeline.expire(run_key(self._prefix, run), own_expiry_s or expiry_s)
            answers = pipeline.execute(raise_on_error=False)
        # Of the set, without which nothing may be stored; and of the lengths.
        for answer in (*answers[:2], *answers[lengths_from:]):
            if isinstance(answer, Exception):
                raise answer
        lengths = dict(zip(expiry_by_run, answers[lengths_from:], strict=False))
        return [answers[index] for index in wanted], lengths

    def _is_stored(self, batch: Batch) -> bool:
        entry_id = f"{batch.position}-0"
        key = run_key(self._prefix, batch.run)
        found = self._call(lambda client: client.xrange(key, min=entry_id, max=entry_id))
        return bool(found) and found[0][1].get(_FIELD) == bytes(batch.data)

    def _call(self, operation: Callable[[Any], _Answer]) -> _Answer:
        """Do an operation on the server; the library's errors become ours."""
        client = self._connected()
        from redis.exceptions import RedisError

        try:
            return operation(client)
        # The library lets errors of the system and of a reply's form through as they are.
        except (RedisError, OSError, ValueError, IndexError) as error:
            raise self._unavailable(error) from error
        except (AttributeError, TypeError) as error:
            if not self._is_interrupted:
                raise
            # Another thread has closed the connection under its feet.
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        words = (str(error) or type(error).__name__).rstrip(".")
        return StoreUnavailable(
            f"the metadata store {self.address} is unavailable: {words}; check the address, and "
            f"that a server of the Redis protocol answers there"
        )


def _page(client: Any, *, key: str, first: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Some entries of a stream, from an id on."""
    page: list[tuple[bytes, dict[bytes, bytes]]] = client.xrange(key, first, count=_PAGE_ENTRIES)
    return page
