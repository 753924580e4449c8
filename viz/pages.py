"""Pages as they are filled: HTML files of `templates/` with ``{{name}}`` where text goes."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagsched.columns import pack
from dagsched.viz.model import Integers

_LEVEL = 6
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def fill_page(name: str, **texts: str) -> str:
    """A page with the given texts in their places; each text stands as it is.

    Raises:
        KeyError: the page has a place that no text is given for.
    """
    return _PLACE.sub(lambda place: texts[place[1]], _template(name))


def data_page(name: str, data: Mapping[str, Any], **texts: str) -> str:
    """A page whose script works on some data, the columns of which are arrays."""
    columns = {key: _packed(values) for key, values in data["columns"].items()}
    text = json.dumps({**data, "columns": columns}, separators=(",", ":"))
    return fill_page(
        name, data=text.replace("<", "\\u003c"), script=_template("columns.js"), **texts
    )


def _packed(values: Integers) -> dict[str, Any]:
    kind, data = pack(values, _LEVEL)
    return {"kind": kind, "items": len(values), "packed": base64.b64encode(data).decode()}


def _template(name: str) -> str:
    return (Path(__file__).resolve().parent / "templates" / name).read_text(encoding="utf-8")
