"""Colours and the widths of text: what makes a picture readable.

Pure. Node colours are told apart by readers with any kind of colour vision (Okabe and Ito, "Color
Universal Design", 2008); there are as many as nodes, all different.
"""

_BASE = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (240, 228, 66),  # yellow
)

GREY_FIRST, GREY_LAST = 0.26, 0.97
"""Brightness of the task that started first, and of the last."""

NO_NODE = "#555555"
"""Border of a task that ran nowhere."""

FAILED = "#c0172b"

# Advance widths of DejaVu Sans from the blank to the tilde, in 1/2048 of the font size.
_WIDTHS = (
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651, 690, 1303,
    1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087, 2048,
    1401, 1405, 1430, 1577, 1294, 1178, 1587, 1540, 604, 604, 1343, 1141, 1767, 1532, 1612, 1235,
    1612, 1423, 1300, 1251, 1499, 1401, 2025, 1403, 1251, 1403, 799, 690, 799, 1716, 1024, 1024,
    1255, 1300, 1126, 1300, 1260, 721, 1300, 1298, 569, 569, 1186, 569, 1995, 1298, 1253, 1300,
    1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075, 1303, 690, 1303, 1716,
)  # fmt: skip


def node_colours(count: int) -> list[str]:
    """The border colours of as many nodes; no two are the same.

    The first seven are the palette; each further round takes the same hues darker, then lighter,
    by steps that halve, so that colours stay as far apart as their number allows.

    Example:
        >>> node_colours(8)
        ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442', '#003f62']
    """
    colours: dict[str, None] = {}
    turn = 0
    while len(colours) < count:
        mix = _mix(turn)
        target = 255 if mix > 0 else 0
        for hue in _BASE:
            red, green, blue = (round(value + (target - value) * abs(mix)) for value in hue)
            while (colour := f"#{red:02x}{green:02x}{blue:02x}") in colours:
                blue = (blue + 1) % 256  # after hundreds of nodes rounding makes colours meet
                green = (green + (blue == 0)) % 256
            colours[colour] = None
        turn += 1
    return list(colours)[:count]


def _mix(turn: int) -> float:
    """How far round `turn` goes towards white (above 0) or black (below 0)."""
    if not turn:
        return 0.0
    step, fraction, weight = (turn + 1) // 2, 0.0, 0.5
    while step:
        fraction += weight * (step & 1)
        step >>= 1
        weight /= 2
    return -0.9 * fraction if turn % 2 else 0.8 * fraction


def grey(rank: int, count: int) -> str:
    """The fill of the task that started as number `rank` (from 0) of `count`: earliest darkest.

    Example:
        >>> grey(0, 3), grey(1, 3), grey(2, 3), grey(0, 1)
        ('#424242', '#9d9d9d', '#f7f7f7', '#424242')
    """
    share = rank / (count - 1) if count > 1 else 0.0
    value = round(255 * (GREY_FIRST + (GREY_LAST - GREY_FIRST) * share))
    return f"#{value:02x}{value:02x}{value:02x}"


def text_on(fill: str) -> str:
    """White or near black, whichever reads better on this fill (WCAG 2 relative luminance).

    Example:
        >>> text_on("#424242"), text_on("#f7f7f7")
        ('#ffffff', '#1a1a1a')
    """
    channels = [int(fill[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [(c / 12.92) if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.06 else "#1a1a1a"


def text_width(text: str, size: float) -> float:
    """About how wide a line of text is in DejaVu Sans of this size, in px."""
    units = 0
    for character in text:
        code = ord(character) - 32
        units += _WIDTHS[code] if 0 <= code < len(_WIDTHS) else 1716
    return units * size / 2048


def shortened(text: str, size: float, width: float) -> str:
    """The text, cut in the middle by an ellipsis if it is wider than `width` px.

    Example:
        >>> shortened("abcdefghijklmnopqrstuvwxyz", 10, 100)
        'abcdefgh\u2026tuvwxyz'
    """
    if text_width(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2:
        head = (keep + 1) // 2
        tail = keep - head
        candidate = f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - tail :]}"
        if text_width(candidate, size) <= width:
            return candidate
        keep -= 1
    return f"{text[:1]}\N{HORIZONTAL ELLIPSIS}"
