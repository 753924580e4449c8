"""A picture as GraphViz text, as JSON, and as a page of its own.

Pure. The page holds the SVG itself and refers to nothing outside.
"""

import json

from dagsched.viz.model import Picture, State
from dagsched.viz.palette import NO_NODE, text_on
from dagsched.viz.svg import colour_by_node, fill_of, rank_count_of
from dagsched.viz.text import headline, label, markup, node_text, plain, tooltip

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; font-family: sans-serif; background: #fff; }}
#bar {{ position: fixed; right: 12px; bottom: 8px; background: #fffd; padding: 4px 8px; }}
#fit:checked ~ main svg {{ width: 100%; height: auto; }}
.mark:hover rect {{ stroke-width: 6; }}
</style>
</head>
<body>
<input type="checkbox" id="fit" hidden>
<label id="bar" for="fit">fit to window: on or off</label>
<main>
{svg}
</main>
</body>
</html>
"""


def dot_text(picture: Picture) -> str:
    """The picture for GraphViz: ellipses, thick borders by node, fills by order of start."""
    colours = colour_by_node(picture)
    count = rank_count_of(picture)
    first_ns = min((mark.start_ns for mark in picture.marks if mark.start_ns >= 0), default=0)
    lines = [
        f"digraph {_quoted(picture.title or 'dagsched')} {{",
        "  rankdir=TB;",
        '  node [shape=ellipse, style=filled, penwidth=5, fontname="DejaVu Sans"];',
        f'  label={_quoted(_legend_lines(picture))}; labelloc=t; fontname="DejaVu Sans";',
    ]
    for index, mark in enumerate(picture.marks):
        fill = fill_of(mark, count)
        style = "filled,dashed" if mark.state is State.WAITING else "filled"
        more = " peripheries=2," if mark.executions > 1 else ""
        text = label(mark) + (" (failed)" if mark.state is State.FAILED else "")
        lines.append(
            f"  {index} [label={_quoted(text)}, tooltip={_quoted(tooltip(mark, first_ns))},{more}"
            f' style="{style}", color="{colours.get(mark.node, NO_NODE)}", fillcolor="{fill}",'
            f' fontcolor="{text_on(fill)}"];'
        )
    lines += [f"  {source} -> {target};" for source, target in picture.edges]
    lines += [
        f"  {source} -> {target} [style=dashed, constraint=false];"
        for source, target in picture.back_edges
    ]
    return "\n".join([*lines, "}", ""])


def _legend_lines(picture: Picture) -> str:
    return "\n".join(
        [picture.title, headline(picture)] + ["  ".join(node_text(line)) for line in picture.nodes]
    )


def _quoted(text: str) -> str:
    escaped = plain(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def json_text(picture: Picture) -> str:
    """The picture's content for other programs; times in ns, -1 where not known."""
    return json.dumps(
        {
            "title": picture.title,
            "task_count": picture.task_count,
            "edge_count": picture.edge_count,
            "nodes": [
                {
                    "id": line.id,
                    "host": line.host,
                    "executors": list(line.executors),
                    "task_count": line.task_count,
                    "busy_share": round(line.busy_share, 4),
                }
                for line in picture.nodes
            ],
            "tasks": [
                {
                    "key": mark.key,
                    "function": mark.function,
                    "task_count": mark.task_count,
                    "state": mark.state.value,
                    "node": mark.node,
                    "executor": mark.executor,
                    "start_ns": mark.start_ns,
                    "duration_ns": mark.duration_ns,
                    "attempts": mark.executions,
                    "size_bytes": mark.size_bytes,
                }
                for mark in picture.marks
            ],
            "edges": [list(edge) for edge in (*picture.edges, *picture.back_edges)],
        },
        indent=1,
    )


def html_text(picture: Picture, svg: str) -> str:
    """A page around the drawn picture."""
    return _PAGE.format(title=markup(picture.title or "dagsched"), svg=svg)
