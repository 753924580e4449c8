"""The live page in a real browser: what it shows of real runs, and how it behaves.

`StandIn` serves states that real runs seldom reach: a thousand executors, a lost node, a server
that goes and comes back.
"""

import copy
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from dagsched import RunEnv, delayed, submit
from dagsched.run import Run
from dagsched.viz.palette import node_colours
from tests import browsing, leaks
from tests.live_standin import StandIn

RECORDED = Path(__file__).with_name("live_snapshot.json")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
MARKUP = "<b class='x'>bold</b><img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True, scope="module")
def no_leaks() -> Iterator[None]:
    """In place of the check after each test: browser and environment are those of the module."""
    before = leaks.look()
    yield
    assert leaks.left_behind(before) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing.browser() as running:
        yield running


@delayed
def square(x: int) -> int:
    return x * x


@delayed(retries=1)
def divide(x: int) -> float:
    print(f"dividing {x}")
    if x == 3:
        raise ValueError(f"three is not liked {MARKUP}")
    return 6 / x


@delayed(timeout=60)
def at_gate(path: str) -> int:
    import time

    while not os.path.exists(path):
        time.sleep(0.005)
    return 1


@delayed
def after(value: int) -> int:
    return value + 1


class Known:
    """An environment with runs whose numbers are known."""

    def __init__(self, env: RunEnv, gate: Path) -> None:
        self.env = env
        self.held: list[Run] = []  # what nobody holds can't be asked about
        self.gate = gate
        self.good = submit(env, delayed(sum)([square(i) for i in range(300)]))
        assert self.good.result(60) == sum(i * i for i in range(300))
        divided = [divide(x) for x in (1, 2, 3)]
        self.failing = divided[-1].key
        self.bad = submit(env, divided)
        with pytest.raises(ValueError, match="three"):
            self.bad.result(60)
        assert env.dashboard_url is not None
        self.url = env.dashboard_url


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    gate = tmp_path_factory.mktemp("gate") / "gate"
    with RunEnv(executors=2, metastore="memory://", dashboard=True) as env:
        yield Known(env, gate)


@pytest.fixture
def page(browser: Browser, known: Known) -> Iterator[Page]:
    with browsing.visit(browser, known.url) as seen:
        yield seen.page


def recorded() -> dict[str, Any]:
    """A snapshot that a real environment gave."""
    snapshot: dict[str, Any] = json.loads(RECORDED.read_text())
    return snapshot


def crowded(nodes: int = 100) -> dict[str, Any]:
    """Ten executors on each node, one of those lost; as many failures; the longest names."""
    snapshot = recorded()
    node, lane = snapshot["nodes"][0], snapshot["stream"]["lanes"][0]
    snapshot["nodes"], snapshot["stream"]["lanes"] = [], []
    for number in range(nodes):
        twin = copy.deepcopy(node) | {"id": 2 + 11 * number, "host": f"node-{number}." + "x" * 60}
        twin["state"] = "lost" if number == 3 else "up"
        one = twin["executors"][0]
        ids = range(twin["id"] + 1, twin["id"] + 11)
        twin["executors"] = [copy.deepcopy(one) | {"id": executor} for executor in ids]
        snapshot["nodes"].append(twin)
        for executor in ids:
            snapshot["stream"]["lanes"].append(lane | {"node": twin["id"], "executor": executor})
    snapshot["functions"] = [
        dict(snapshot["functions"][0]) | {"name": f"package.module.function_{n}_" + "y" * 80}
        for n in range(2 * nodes)
    ]
    failure = snapshot["failures"][0]
    snapshot["failures"] = [
        failure | {"key": f"{n}-" + "k" * 300, "text": "t" * 2000} for n in range(nodes)
    ]
    snapshot["subtrees"]["cells"] = [snapshot["subtrees"]["cells"][0]] * 10 * nodes
    return snapshot


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with closing(StandIn(recorded())) as server:
        yield server


def choose(page: Page, run: Run) -> None:
    page.locator(".run", has_text=run.run_id).click()
    expect(page.locator(".run[aria-pressed=true]")).to_contain_text(run.run_id)


# --- what it shows ----------------------------------------------------------------------------


def test_runs_and_how_far_they_are(page: Page, known: Known) -> None:
    good, bad = (page.locator(".run", has_text=run.run_id) for run in (known.good, known.bad))
    expect(good).to_contain_text("301 of 301 tasks")
    expect(good).to_contain_text("100 %")
    expect(good.locator(".badge")).to_have_text("done")
    expect(good.locator("[role=progressbar]")).to_have_attribute("aria-valuenow", "100")
    expect(bad.locator(".badge")).to_have_text("failed")
    expect(bad).to_contain_text("of 3 tasks")
    expect(bad).to_contain_text("1 failed")
    expect(bad).to_contain_text("1 retry")


def test_functions_of_the_chosen_run(page: Page, known: Known) -> None:
    choose(page, known.good)
    rows = page.locator("#functions-rows tr:visible")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="square").locator("td").first).to_have_text("300")
    expect(rows.filter(has_text="sum").locator("td").first).to_have_text("1")
    page.get_by_role("button", name="Done", exact=True).click()
    expect(rows.first).to_contain_text("square")
    expect(page.locator("th[data-sort=done_count]")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="Done", exact=True).click()
    expect(rows.first).to_contain_text("sum")
    page.get_by_role("button", name="Function", exact=True).click()
    expect(rows.first).to_contain_text("square")
    choose(page, known.bad)
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("divide")
    page.get_by_role("button", name="Follow the newest").click()
    expect(page.locator(".run[aria-pressed=true]")).to_have_count(1)


def test_the_graph_by_subtree(page: Page, known: Known) -> None:
    choose(page, known.good)
    expect(page.locator("#graph-sum")).to_contain_text("301 tasks in")
    count = int(page.locator("#graph-sum").inner_text().split(" in ")[1].split(" ")[0])
    expect(page.locator("#graph-legend li", has_text="done").locator("b")).to_have_text(str(count))
    page.locator("#graph-cells").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_contain_text("done")
    expect(page.locator("#tip")).to_contain_text("(100 %)")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_nodes_and_executors(page: Page, known: Known) -> None:
    [node] = known.env.nodes
    card = page.locator(".card")
    expect(card).to_have_count(1)
    expect(card.locator("h3")).to_contain_text(f"Node {node.brokerid}")
    expect(card.locator(".badge")).to_have_text("up")
    expect(card.locator(".executors li")).to_have_count(2)
    shown = [row.locator("b").inner_text() for row in card.locator(".executors li").all()]
    assert shown == [str(executor) for executor in node.executorids]
    expect(page.locator("#nodes-sum")).to_contain_text("1 node,")


def test_a_traceback_opens(page: Page, known: Known) -> None:
    row = page.locator("#failures-rows li", has_text=known.failing).filter(
        has=page.locator("[data-kind=bad]")
    )
    trace = row.locator("pre")
    expect(trace).to_be_hidden()
    row.locator("summary").click()
    expect(trace).to_be_visible()
    expect(trace).to_contain_text("raise ValueError")
    expect(trace).to_contain_text("test_live_page.py")
    expect(row).to_contain_text(f"run {known.bad.run_id}")
    # It stays open while numbers come.
    run = submit(known.env, square(7))
    known.held.append(run)
    expect(page.locator(".run", has_text=run.run_id).locator(".badge")).to_have_text("done")
    expect(trace).to_be_visible()
    row.get_by_role("button", name="What happened to it").click()
    expect(page.locator("#why-key")).to_have_value(known.failing)
    expect(page.locator("#why-text")).to_be_visible()


def test_texts_of_users_are_text(page: Page) -> None:
    expect(page.locator("#failures-rows li").filter(has_text=MARKUP).first).to_be_visible()
    assert page.locator("#failures .x, #failures img").count() == 0


def test_why_something_waits(browser: Browser, known: Known) -> None:
    with browsing.visit(browser, known.url) as seen:
        ask_why(seen.page, known)
        # The browser itself tells of the answer that there is no such task.
        seen.complaints[:] = [one for one in seen.complaints if "404" not in one]


def ask_why(page: Page, known: Known) -> None:
    gate = at_gate(str(known.gate))
    then = after(gate)
    run = submit(known.env, then)
    known.held.append(run)
    try:
        expect(page.locator(".run", has_text=run.run_id)).to_be_visible()
        expect(page.locator(".doing", has_text="at_gate")).to_be_visible()
        page.locator("#why-run").select_option(run.run_id)
        page.locator("#why-key").fill("at_")
        expect(page.locator("#why-keys option")).to_have_count(1)
        assert page.locator("#why-keys option").get_attribute("value") == gate.key
        page.locator("#why-key").fill(then.key)
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#why-text")).to_contain_text(gate.key)
        expect(page.locator("#why-story li").first).to_be_visible()
        page.locator("#why-key").fill("no such task")
        page.keyboard.press("Enter")
        expect(page.locator("#why-text")).to_contain_text("no such task")
        expect(page.locator("#why-text")).to_have_attribute("data-kind", "wrong")
    finally:
        known.gate.write_text("")
    assert run.result(60) == 2


def test_logs(page: Page, known: Known) -> None:
    page.locator("#logs").scroll_into_view_if_needed()
    executors = [f"{known.env.nodes[0].brokerid}/{one}" for one in known.env.nodes[0].executorids]
    values = page.locator("#logs-who option").evaluate_all("all => all.map(one => one.value)")
    assert values == [str(known.env.nodes[0].brokerid), *executors]
    found = []
    for executor in executors:
        asked = f"executor={executor.partition('/')[2]}"
        with page.expect_response(lambda answer, asked=asked: asked in answer.url) as answer:
            page.locator("#logs-who").select_option(executor)
        lines = answer.value.json()["lines"]
        if lines:
            expect(page.locator("#logs-lines")).to_have_text("\n".join(lines))
        else:
            expect(page.locator("#logs-empty")).to_be_visible()
        found += lines
    assert "dividing 3" in "\n".join(found)


def test_the_rate_and_the_state_are_in_the_header(page: Page, known: Known) -> None:
    expect(page.locator("#connection-text")).to_have_text("Live")
    expect(page.locator("#where")).to_contain_text("up")
    assert "token" not in page.url


# --- how it behaves ---------------------------------------------------------------------------


def test_nothing_moves_while_numbers_come(page: Page, known: Known) -> None:
    page.evaluate(browsing.WATCH_SHIFTS)
    done = threading.Event()

    def keep_busy() -> None:
        while not done.is_set():
            known.held.append(submit(known.env, [square(i) for i in range(20_000)]))
            known.held[-1].result(60)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        page.wait_for_timeout(5_000)  # the time in which it is to stand still
    finally:
        done.set()
        thread.join()
    expect(page.locator(".run").first).to_contain_text("20,000 of 20,000")
    shifts = page.evaluate("window.shifts")
    assert sum(one["value"] for one in shifts) < 0.02, shifts


def test_by_keyboard_alone(page: Page) -> None:
    stops = []
    for _ in range(150):
        page.keyboard.press("Tab")
        stop = page.evaluate(browsing.FOCUSED)
        if stop["tag"] == "BODY":
            break
        stops.append(stop)
    else:
        pytest.fail(f"the focus never left the page: {[stop['name'] for stop in stops[-20:]]}")
    names = [stop["name"] for stop in stops]
    assert names[0] == "skip"
    assert [stop for stop in stops if not (stop["ring"] and stop["seen"])] == []
    wanted = [
        "theme",
        "runs-body",
        "stream-scroller",
        "graph-cells",
        "why-run",
        "why-key",
        "logs-who",
    ]
    assert [name for name in wanted if name not in names] == []
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    summary = page.locator("#failures-rows summary").first
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#failures-rows pre").first).to_be_visible()
    page.locator("#stream-scroller").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tip")).to_contain_text("Executor")


def test_landmarks_and_names(page: Page) -> None:
    for role in ("banner", "navigation", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    nameless = page.evaluate(
        "() => [...document.querySelectorAll("
        "'button, select, input, canvas[tabindex], section')].filter("
        "one => !(one.textContent.trim() || one.labels?.length || one.getAttribute('aria-label') "
        "|| one.getAttribute('aria-labelledby'))).map(one => one.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Browser, stand_in: StandIn, scheme: str) -> None:
    snapshot = crowded(6)
    snapshot["runs"] = [
        run | {"run_id": f"r-{state}", "state": state}
        for run in snapshot["runs"][:1]
        for state in ("running", "done", "failed", "cancelled")
    ]
    states = ("starting", "up", "suspected", "lost", "drained")
    for node, state in zip(snapshot["nodes"], states, strict=False):
        node["state"] = state
    stand_in.tell(snapshot)
    with browsing.visit(browser, stand_in.url, color_scheme=scheme) as seen:
        seen.page.locator("#failures-rows summary").first.click()
        assert seen.page.evaluate("document.documentElement.dataset.theme") == scheme
        contrasts = seen.page.evaluate(browsing.CONTRASTS)
    assert len(contrasts) > 200
    assert [one for one in contrasts if one[1] < 4.5] == []


def test_the_theme_can_be_chosen_and_stays(browser: Browser, stand_in: StandIn) -> None:
    with browsing.visit(browser, stand_in.url, color_scheme="dark") as seen:
        theme = "document.documentElement.dataset.theme"
        button = seen.page.locator("#theme")
        assert seen.page.evaluate(theme) == "dark"
        button.click()
        expect(button).to_have_text("Light")
        assert seen.page.evaluate(theme) == "light"
        seen.page.reload()
        expect(button).to_have_text("Light")
        assert seen.page.evaluate(theme) == "light"


@pytest.mark.parametrize("nodes", [0, 15])
def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, stand_in: StandIn, nodes: int
) -> None:
    stand_in.tell(crowded(nodes) if nodes else recorded())
    with browsing.visit(browser, stand_in.url, **PHONE) as seen:
        seen.page.locator("#failures-rows summary").first.click()
        assert seen.page.evaluate(browsing.TOO_WIDE) == []
        height = seen.page.evaluate("document.documentElement.scrollHeight")
        assert height < 5_000  # panels scroll inside, whatever is in them


def test_a_thousand_executors_cost_little(browser: Browser, stand_in: StandIn) -> None:
    snapshot = crowded()
    stand_in.tell(snapshot)
    with browsing.visit(browser, stand_in.url) as seen:
        page = seen.page
        expect(page.locator("#nodes-sum")).to_contain_text("100 nodes")
        expect(page.locator("#nodes-sum")).to_contain_text("1 not well")
        assert page.evaluate("document.querySelectorAll('*').length") < 10_000
        page.evaluate(
            "() => { window.changes = 0; new MutationObserver(all => window.changes += all.length)"
            ".observe(document.body, {subtree: true, childList: true, characterData: true}) }"
        )
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable")
        spent_s = -_script_s(tools)
        for _ in range(4):
            snapshot["time_s"] += 0.5
            for node in snapshot["nodes"]:
                for executor in node["executors"]:
                    executor["task_count"] += 20_000
            snapshot["environment"]["uptime_s"] += 0.5
            stand_in.tell(snapshot)
            page.wait_for_timeout(500)  # the pace of a real server
        spent_s += _script_s(tools)
        # Four updates and two seconds of frames: 0.2 s of script where it was measured.
        assert spent_s < 1.5
        assert page.evaluate("window.changes") < 4 * 3 * 24 * 16
        page.get_by_role("button", name="Show all 100 nodes").click()
        expect(page.locator(".card")).to_have_count(100)


def _script_s(tools: Any) -> float:
    metrics = tools.send("Performance.getMetrics")["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "ScriptDuration"))


def test_pointing_at_the_stream(browser: Browser, stand_in: StandIn) -> None:
    snapshot = recorded()
    stream = snapshot["stream"]
    bins = 240
    stream.update(first_bin=0, bins=bins, functions=["alpha", "beta"])
    stream["origin_s"] = snapshot["time_s"] - bins * stream["bin_s"]
    first, second = stream["lanes"] = stream["lanes"][:2]
    first.update(busy=[100] * bins, function=[1] * bins, tasks=[1234] * bins, failed=[2] * bins)
    second.update(busy=[0] * bins, function=[-1] * bins, tasks=[0] * bins, failed=[0] * bins)
    stand_in.tell(snapshot)
    with browsing.visit(browser, stand_in.url) as seen:
        page = seen.page
        page.locator("#stream").scroll_into_view_if_needed()
        expect(page.locator("#stream-legend li")).to_have_text(["beta"])
        scroller = page.locator("#stream-scroller")
        scroller.hover(position={"x": 500, "y": 40})
        expect(page.locator("#tip")).to_contain_text("beta")
        expect(page.locator("#tip")).to_contain_text("100 % busy, 1,234 tasks ended, 2 failed")
        scroller.focus()
        for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowDown"):
            page.keyboard.press(key)
        expect(page.locator("#tip")).to_contain_text(f"Executor {second['executor']} of node")
        expect(page.locator("#tip")).to_contain_text("idle")
        expect(page.locator("#spoken")).to_contain_text("idle")


@pytest.mark.parametrize("wish", ["no-preference", "reduce"])
def test_the_stream_moves_unless_that_is_unwanted(
    browser: Browser, stand_in: StandIn, wish: Any
) -> None:
    with browsing.visit(browser, stand_in.url, reduced_motion=wish) as seen:
        place = "document.querySelector('#stream-plot').style.transform"
        before = seen.page.evaluate(place)
        seen.page.wait_for_timeout(700)
        assert (seen.page.evaluate(place) == before) == (wish == "reduce")


def test_it_comes_back_after_a_break(browser: Browser) -> None:
    server = StandIn(recorded())
    with browsing.visit(browser, server.url) as seen:
        page = seen.page
        expect(page.locator("#connection-text")).to_have_text("Live")
        server.close()
        expect(page.locator("#connection-text")).to_have_text("Cut off")
        expect(page.get_by_role("alert")).to_contain_text("tries again by itself")
        server = StandIn(recorded(), server.port)
        try:
            expect(page.locator("#connection-text")).to_have_text("Live")
            expect(page.get_by_role("alert")).to_be_hidden()
            server.refuses = True
            server.drop()
            expect(page.locator("#connection-text")).to_have_text("Refused")
            expect(page.get_by_role("alert")).to_contain_text("open the address")
        finally:
            page.goto("about:blank")
            server.close()
        # The browser itself tells of connections that it could not make.
        assert [one for one in seen.complaints if "Failed to load resource" not in one] == []
        seen.complaints.clear()


def test_the_end_of_the_environment_is_told(browser: Browser) -> None:
    with RunEnv(executors=1, metastore="memory://", dashboard=True) as env:
        expected = submit(env, square(3)).result(60)
        assert expected == 9
        context = browsing.visit(browser, env.dashboard_url)
        seen = context.__enter__()
    expect(seen.page.locator("#connection-text")).to_have_text("Ended")
    expect(seen.page.get_by_role("alert")).to_contain_text("has ended")
    expect(seen.page.locator(".run")).to_have_count(1)
    seen.complaints[:] = [one for one in seen.complaints if "Failed to load" not in one]
    context.__exit__(None, None, None)


def test_empty_states_say_what_to_do(browser: Browser, stand_in: StandIn) -> None:
    snapshot = recorded()
    snapshot |= {"runs": [], "shown": None, "functions": [], "failures": [], "nodes": []}
    snapshot["subtrees"] = {"count": 0, "task_count": 0, "cells": []}
    snapshot["stream"]["lanes"] = []
    stand_in.tell(snapshot)
    with browsing.visit(browser, stand_in.url) as seen:
        expect(seen.page.locator("#runs-empty")).to_contain_text("rundag(env, graph)")
        expect(seen.page.locator("#nodes-empty")).to_contain_text("addprocs")
        for panel in ("stream", "graph", "functions", "failures"):
            expect(seen.page.locator(f"#{panel}-empty")).to_be_visible()


# --- what it is made of -----------------------------------------------------------------------


def test_functions_have_the_colours_of_the_pictures(page: Page) -> None:
    script = "async count => (await import('/static/palette.js')).colours(count)"
    assert page.evaluate(script, 100) == node_colours(100)


def test_numbers_as_people_read_them(page: Page) -> None:
    script = """async () => {
      const words = await import('/static/words.js'), GiB = 2 ** 30;
      return [
        ...[0, 0.4, 950, 12345, 4560000].map(words.short),
        ...[3.5e-5, 0.0124, 3.2, 252, 11100].map(words.time),
        ...[346.4, 1032].map(words.brief), ...[512, 1.5 * GiB].map(words.bytes),
        words.bytesOf(0.7 * GiB, 2 * GiB),
        words.percent(999, 1000), words.percent(1, 1000), words.percent(5, 5),
      ];
    }"""
    assert page.evaluate(script) == [
        "0", "0.4", "950", "12.3k", "4.56M",
        "35 µs", "12 ms", "3.2 s", "4 min 12 s", "3 h 05 min",
        "346 s", "17.2 min", "512 B", "1.5 GiB",
        "0.7 of 2.0 GiB", "99 %", "< 1 %", "100 %",
    ]  # fmt: skip


def test_the_recorded_snapshot_is_like_those_of_now(page: Page) -> None:
    now = page.evaluate("async () => (await fetch('api/snapshot')).json()")
    old = recorded()
    assert set(now) == set(old)
    for part in ("environment", "subtrees", "stream"):
        assert set(now[part]) == set(old[part]), part
    for part in ("runs", "functions", "failures", "nodes"):
        assert set(now[part][0]) == set(old[part][0]), part
    assert set(now["nodes"][0]["executors"][0]) == set(old["nodes"][0]["executors"][0])
    assert set(now["stream"]["lanes"][0]) == set(old["stream"]["lanes"][0])
