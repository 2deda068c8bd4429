"""ECMAScript regular expressions, as `--tensor-type` takes them, on top of Python's `re`.

llama-quantize compiles the lower-cased pattern with std::regex and searches it in the tensor name. Over tensor names
(ASCII, one line) the two languages differ in few places; those are translated or refused here, never guessed.
"""

from __future__ import annotations

import re

from surgeon.errors import SurgeonError
from surgeon.plan.patterns import LONGEST, Pattern

# Python's own extensions that std::regex does not know: they must not silently work in a recipe that is exported later.
_FOREIGN_GROUP = re.compile(r"\(\?(?![:=!])")
_COUNTS = re.compile(r"\{([0-9]+(,[0-9]*)?|,[0-9]*)\}")  # any other brace is a letter
_FOREIGN_ESCAPE = "AZazgN"
_POSIX_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "lower": "a-z",
    "upper": "A-Z",
    "space": r"\s",
    "xdigit": "0-9a-fA-F",
    "punct": r"!-/:-@\[-`{-~",
    "d": "0-9",
    "w": r"\w",
    "s": r"\s",
}


def compile_pattern(pattern: str, *, lower: bool = True) -> Pattern:
    """The pattern, lower-cased as llama-quantize does, ready for `.search(name)`; raises SurgeonError when invalid."""
    text = _ascii_lower(pattern) if lower else pattern
    if len(text) > LONGEST:
        raise SurgeonError(f"--tensor-type {pattern[:40]!r}… has {len(text)} letters; at most {LONGEST} are possible")
    try:
        return Pattern(_translate(text), pattern)
    except (re.error, OverflowError, ValueError) as error:
        reason = str(error)
    except (RecursionError, MemoryError):
        reason = "it is nested too deeply"
    raise SurgeonError(f"--tensor-type {pattern!r:.200} is not a regular expression: {reason[:200]}")


def _ascii_lower(text: str) -> str:
    return "".join(chr(ord(letter) + 32) if "A" <= letter <= "Z" else letter for letter in text)


def _translate(text: str) -> str:
    foreign = _FOREIGN_GROUP.search(text)
    if foreign:
        raise ValueError(f"group {text[foreign.start() : foreign.start() + 4]!r} is unknown in ECMAScript")
    out: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            piece, at = _escape(text, at)
        elif letter == "[":
            piece, at = _bracket(text, at)
        elif letter == "{" and not _COUNTS.match(text, at):
            piece, at = r"\{", at + 1
        elif letter == "$":
            # `$` of Python also matches before a final newline.
            piece, at = r"\Z", at + 1
        elif letter in "*+?}" and text[at + 1 : at + 2] == "+":
            # std::regex has no possessive repeats: there `a++` is an error.
            raise ValueError(f"{text[at : at + 2]!r} repeats a repeat")
        else:
            piece, at = letter, at + 1
        out.append(piece)
    return "".join(out)


def _escape(text: str, at: int) -> tuple[str, int]:
    follower = text[at + 1 : at + 2]
    if not follower:
        raise ValueError("it ends in a backslash")
    if follower in _FOREIGN_ESCAPE:
        raise ValueError(f"escape \\{follower} is unknown in ECMAScript")
    if follower == "c" and text[at + 2 : at + 3].isalpha():
        return re.escape(chr(ord(text[at + 2]) % 32)), at + 3
    if follower == "0":
        return r"\x00", at + 2
    return text[at : at + 2], at + 2


def _bracket(text: str, at: int) -> tuple[str, int]:
    """A bracket expression from `[` on; in ECMAScript `[]` matches nothing and `[^]` anything."""
    start = at
    at += 1
    negated = text[at : at + 1] == "^"
    at += negated
    if text[at : at + 1] == "]":
        return (r"[\s\S]" if negated else "(?!)"), at + 1
    out = ["[^" if negated else "["]
    while at < len(text) and text[at] != "]":
        if text.startswith("[:", at):
            end = text.find(":]", at)
            name = text[at + 2 : end] if end > 0 else ""
            if name not in _POSIX_CLASSES:
                raise ValueError(f"unknown character class {text[at : at + 12]!r}")
            out.append(_POSIX_CLASSES[name])
            at = end + 2
        elif text[at] == "\\":
            piece, at = _escape(text, at)
            out.append(r"\x08" if piece == r"\b" else piece)
        else:
            # A lone `[` and doubled signs are literal here, but Python warns of them as future set operations.
            out.append("\\" + text[at] if text[at] in "[&~|" else text[at])
            at += 1
    if at >= len(text):
        raise ValueError(f"bracket {text[start:]!r} is not closed")
    return "".join(out) + "]", at + 1
