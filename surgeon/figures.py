"""Numbers as the screen writes them, and as they are typed there."""

from __future__ import annotations

LEVELS = "▁▂▃▄▅▆▇█"


def size(nbytes: float) -> str:
    """Of files, models and disks, in decimal units and three figures: `23.2 MB`, `826 MB`, `1.02 kB`."""
    return _three_figures(nbytes, binary=False)


def memory(nbytes: float) -> str:
    """Of cards and of the computer's memory, in binary units and three figures: `24.0 GiB`, `512 MiB`."""
    return _three_figures(nbytes, binary=True)


def _three_figures(nbytes: float, *, binary: bool) -> str:
    from humanize import naturalsize  # not for `--help`

    number, _, unit = naturalsize(nbytes, binary=binary, format="%.2f").partition(" ")
    if "." in number:
        digits = max(0, 3 - len(number.lstrip("-").partition(".")[0]))
        number = f"{float(number):.{digits}f}"
    return f"{number} {unit.replace('Bytes', 'B').replace('Byte', 'B')}"


def count(number: float) -> str:
    """`11.5 M`, `1.1 B`: parameters, as model names write them."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.4g} {unit}" if number < 10 * limit else f"{number / limit:.3g} {unit}"
    return f"{number:g}"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 tensor`, `2 tensors`; many: the plural, where it is not `one` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def figure(value: float) -> str:
    """A statistic in at most eight cells, enough figures to compare rows."""
    magnitude = abs(value)
    if magnitude >= 1e6:
        return f"{value:.3g}"
    for limit, decimals in ((1000, 0), (100, 1), (1, 2), (0.1, 4)):
        if magnitude >= limit:
            return f"{value:.{decimals}f}"
    return f"{value:.3g}" if value else "0"


def divergence(kld: float) -> str:
    """`.0004`, `.012`, `3.1e-05`: a KL divergence in few figures, without its leading zero."""
    if 0 < kld < 1e-4:
        return f"{kld:.2g}"
    return f"{kld:.{4 if kld < 0.1 else 3}f}".removeprefix("0")


def signed_divergence(change: float) -> str:
    """`+.0030`, `−.0012`: how much a KL divergence grew."""
    return f"{'−' if change < 0 else '+'}{divergence(abs(change))}"


def duration(seconds: float) -> str:
    """`47 s`, `3:09`, `1:02:00`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def level(fraction: float) -> str:
    """One cell, filled from below by a fraction of 0-1."""
    return LEVELS[min(7, max(0, int(fraction * 8)))]


def bar(fraction: float, width: int) -> str:
    """A thin bar of `width` cells in steps of half a cell; never quite empty, so that a low value is seen."""
    halves = max(1, round(min(1.0, max(0.0, fraction)) * width * 2))
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width)


def ramp(fraction: float) -> str:
    """The role of the five-step ramp for a fraction of 0-1."""
    return f"ramp{min(4, max(0, int(fraction * 5)))}"


def typed_number(text: str) -> int | None:
    """The whole number that ASCII digits write, with a sign or without; None for anything else and beyond 18 digits."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None
