"""What a notebook shows of a `Delayed`, a `Run` and a `RunEnv`.

Responsible for that showing something never fails, starts nothing and waits for nobody; pictures
are made by `dagsched.viz`, which is loaded when the first is shown.
"""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagsched.delayed import Delayed
    from dagsched.run import Run
    from dagsched.runenv import RunEnv


class Shown:
    """A run or an environment, for notebooks."""

    def _repr_html_(self) -> str:
        from dagsched.run import Run
        from dagsched.runenv import RunEnv

        if isinstance(self, Run):
            return run_html(self)
        assert isinstance(self, RunEnv)
        return environment_html(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return bundle(self, self._repr_html_())


RUNS_MAX = 10
"""Most runs of an environment that are listed."""


def delayed_html(delayed: "Delayed") -> str:
    """The graph of a call."""
    from dagsched.errors import GraphError
    from dagsched.viz import visualize

    try:
        return visualize(delayed)._repr_html_()
    except GraphError as error:  # a cycle among others
        return _plain(f"{delayed!r}: {error}")


def run_html(run: "Run") -> str:
    """The schedule of a run as far as it has come, or its graph before anything ran."""
    from dagsched.viz import visualize

    kind = "gantt" if run.trace().ran.any() else "dag"
    return _plain(repr(run)) + visualize(run, kind=kind)._repr_html_()


def environment_html(env: "RunEnv") -> str:
    """Nodes, and the last runs."""
    rows = [
        f"<tr><td>{node.brokerid}</td><td>{escape(node.host)}</td>"
        f"<td>{', '.join(map(str, node.executorids))}</td></tr>"
        for node in env.nodes
    ]
    runs = [
        f"<tr><td>{run.run_id}</td><td>{run.state}</td>"
        f"<td>{' of '.join(f'{count:,}' for count in run.progress())} tasks</td></tr>"
        for run in env.runs[-RUNS_MAX:]
    ]
    parts = [
        _plain(repr(env).partition("\n")[0]),
        f"<table><tr><th>broker</th><th>host</th><th>executors</th></tr>{''.join(rows)}</table>",
    ]
    if runs:
        head = "<tr><th>run</th><th>state</th><th>done</th></tr>"
        parts.append(f"<table>{head}{''.join(runs)}</table>")
    return "".join(parts)


def bundle(thing: object, html: str) -> dict[str, str]:
    """What Jupyter asks for: the same by type of content."""
    return {"text/plain": repr(thing), "text/html": html}


def _plain(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
