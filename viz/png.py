"""SVG text to PNG bytes, the same on every machine.

Uses resvg (a Rust library, in wheels without any system package) with the letters that are kept
beside this module, so that a machine without fonts draws the same picture; the machine's own fonts
are searched only for characters that these lack.
"""

from pathlib import Path

FONT_FILE = Path(__file__).resolve().parent / "fonts" / "DejaVuSans-latin.ttf"
KNOWN = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("\n\u00b5\u00d7\u2013\u2026\u2192")

PIXELS_MAX = 60_000_000
"""Larger pictures are scaled down to this many: more memory would not make them clearer."""


def render_png(svg: str, *, width: float, height: float, pixels_max: float = PIXELS_MAX) -> bytes:
    """The picture as the bytes of a PNG file.

    Args:
        svg: text of the SVG file.
        width: of the picture in px.
        height: of the picture in px.
        pixels_max: larger pictures are scaled down to this many.

    Raises:
        ImportError: the package resvg_py is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "pictures as .png need the package resvg_py (pip install resvg_py); "
            ".svg and .html need nothing"
        ) from error
    zoom = min(1.0, (pixels_max / max(1.0, width * height)) ** 0.5)
    own = FONT_FILE.is_file()
    data: bytes = resvg_py.svg_to_bytes(
        svg_string=svg,
        zoom=zoom,
        skip_system_fonts=own and KNOWN.issuperset(svg),
        font_files=[str(FONT_FILE)] if own else None,
        font_family="DejaVu Sans",
        sans_serif_family="DejaVu Sans",
    )
    return data
