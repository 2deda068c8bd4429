"""Tables as plain text."""

from __future__ import annotations

from surgeon.terminal import escaped


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    header, *rows = ([escaped(text) for text in row] for row in (header, *rows))
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]

    def line(cells: list[str]) -> str:
        aligned = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *aligned]).rstrip()

    return "\n".join(map(line, [header, *rows]))
