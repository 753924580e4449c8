"""/metrics of a real run: what it says is so, is documented, and is what the dashboard asks for."""

import json
import re
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dagsched import RunEnv, delayed, rundag, submit
from tests.checkout import ROOT
from tests.live import Page

Values = dict[str, list[tuple[dict[str, str], float]]]

_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@pytest.fixture(scope="module")
def exposed() -> Iterator[str]:
    """What a scraper gets after a run that was done and one that failed."""
    with RunEnv(executors=2, metastore="memory://", dashboard=True) as env:
        rundag(env, delayed(sum)([delayed(abs)(-n) for n in range(300)]))
        assert submit(env, delayed(int)("no number")).exception() is not None
        page = Page.of(env)
        page.wait_for(lambda shown: shown["nodes"][0]["executors"][0]["task_count"])
        yield page.ask("/metrics").text


@pytest.fixture
def values(exposed: str) -> Values:
    """Labels and values of every sample, by name; read by Prometheus' own parser."""
    found: Values = {}
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def one(values: Values, name: str, **labels: str) -> float:
    """The value of the only sample with these labels."""
    ((_, value),) = [(has, value) for has, value in values[name] if labels.items() <= has.items()]
    return value


def test_the_numbers_are_those_of_the_runs(values: Values) -> None:
    assert one(values, "dagsched_tasks_total", status="done") == 301
    assert one(values, "dagsched_tasks_total", status="failed") == 1
    assert one(values, "dagsched_task_retries_total") == 0
    assert one(values, "dagsched_runs_total", status="done") == 1
    assert one(values, "dagsched_runs_total", status="failed") == 1
    assert one(values, "dagsched_runs_active") == 0
    assert one(values, "dagsched_nodes", state="up") == 1
    executors = values["dagsched_executors"]
    assert sum(value for _, value in executors) == 2
    assert one(values, "dagsched_task_duration_seconds_count", function="abs") == 300
    assert one(values, "dagsched_task_duration_seconds_bucket", function="abs", le="+Inf") == 300
    assert one(values, "dagsched_task_duration_seconds_count", function="sum") == 1
    assert one(values, "dagsched_node_losses_total") == 0
    assert one(values, "dagsched_store_up") == 1


def test_buckets_only_rise(values: Values) -> None:
    buckets = [
        value
        for labels, value in values["dagsched_task_duration_seconds_bucket"]
        if labels["function"] == "abs"
    ]
    assert buckets == sorted(buckets)


def test_no_label_is_a_key(values: Values) -> None:
    labels = {name for samples in values.values() for has, _ in samples for name in has}
    assert labels == {
        "executor", "function", "kind", "le", "node", "rootpath", "state", "status", "token",
        "version",
    }  # fmt: skip


def test_every_metric_is_documented_and_every_documented_one_is_there(exposed: str) -> None:
    readme = (ROOT / "viz/live/README.md").read_text()
    documented = set(re.findall(r"^\| `(dagsched_\w+)", readme, re.MULTILINE))
    told = set(re.findall(r"^# TYPE (\w+)", exposed, re.MULTILINE))
    assert documented == told


def test_the_dashboard_asks_for_what_there_is(values: Values) -> None:
    dashboard = json.loads((ROOT / "viz/grafana/dagsched.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    expressions += [
        variable["definition"]
        for variable in dashboard["templating"]["list"]
        if "definition" in variable
    ]
    asked = set()
    for expression in expressions:
        names = {word for word in _WORD.findall(expression) if word.startswith("dagsched_")}
        assert names, expression
        asked |= names
        # Labels by which it chooses or groups must be those that the metric has.
        for group in re.findall(r"by \(([^)]*)\)", expression):
            for label in map(str.strip, group.split(",")):
                assert all(label in values[name][0][0] for name in names), (expression, label)
        for label, word in re.findall(r'(\w+)="(\w+)"', expression):
            assert all(any(has.get(label) == word for has, _ in values[name]) for name in names), (
                expression
            )
    assert asked - values.keys() == set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
