"""What the argument of one option says: rules, layers, overrides, sizes; numbers as C reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.layer_lists import span_of
from surgeon.plan.plan import KVOverride, TypeRule, parse_rule

INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")
FLOAT = re.compile(r"\s*[+-]?(inf(inity)?|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.IGNORECASE)
_MOST_LAYERS = 10_000  # of one run `3-5`
_MAX_KEY = 127
_MAX_TEXT = 127
CHAT_TEMPLATE = "tokenizer.chat_template"


class OptionError(SurgeonError):
    """A wrong command line; like llama-quantize's, its exit code is 1."""


def rule(text: str) -> TypeRule:
    """`PATTERN=TYPE`. Raises OptionError."""
    try:
        return parse_rule(text)
    except SurgeonError as error:
        raise OptionError(f"--tensor-type: {error}") from None


def read_type_file(path: str) -> list[TypeRule]:
    """The rules of a `--tensor-type-file`, in file order; lines that begin with `#` are remarks."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        lines = [line for line in text.removeprefix("\ufeff").splitlines() if not line.lstrip().startswith("#")]
        return [parse_rule(word) for word in re.split(r"[ \t\n\v\f\r]+", "\n".join(lines)) if word]
    except SurgeonError as error:
        raise OptionError(f"{path}: {error}") from None


def leading_number(match: re.Match[str]) -> int:
    """What a match of INTEGER says. Raises OptionError beyond 64 bits: C has no such number, Python none of thousands
    of digits.
    """
    digits = match[1].lstrip("+-").lstrip("0")
    if len(digits) > 20:
        raise OptionError(f"{match[1][:20]}…: this number is too large")
    return int(digits or "0") * (-1 if match[1].startswith("-") else 1)


def parse_layers(text: str, *, compat: bool = False) -> list[int]:
    """`26,29` or `3-5`. With `compat` leading digits of each item count, as in llama-quantize: 3-5 is 3."""
    items = text.split(",")
    layers: list[int] = []
    for item in items[:-1] if items[-1] == "" else items:
        layers += [_layer(item)] if compat else _span(item)
    return layers


def _layer(item: str) -> int:
    match = INTEGER.match(item)
    if match is None or (number := leading_number(match)) < 0:
        raise OptionError(f"--prune-layers: {item[:60]!r} is not a layer number; use for instance --prune-layers 26,29")
    return number


def _span(item: str) -> range:
    try:
        first, last = span_of(item.strip())
    except SurgeonError as error:
        raise OptionError(f"--prune-layers: {error}") from None
    if not 0 <= last - first < _MOST_LAYERS:
        raise OptionError(f"--prune-layers: {item!r} is not a run of layers; use for instance --prune-layers 3-5")
    return range(first, last + 1)


def parse_setting(text: str) -> KVOverride:
    """`KEY=VALUE`; what VALUE means is decided by the type the key has. Raises OptionError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OptionError(f"--set {text[:60]!r}: write KEY=VALUE, for instance general.name=mine")
    return KVOverride(key, "auto", value)


def text_in(path: str) -> str:
    """The whole of a UTF-8 file. Raises OptionError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_override(text: str, *, compat: bool = False) -> KVOverride:
    """`KEY=TYPE:VALUE`. With `compat` numbers are read as C does (rubbish is 0) and lengths are limited."""
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    if not equals or not colon or not key or kind not in ("int", "float", "bool", "str"):
        raise OptionError(f"--override-kv {text!r}: write KEY=TYPE:VALUE with TYPE int, float, bool or str")
    if compat and (len(key.encode()) > _MAX_KEY or (kind == "str" and len(value.encode()) > _MAX_TEXT)):
        raise OptionError(
            f"--override-kv {text[:40]!r}…: llama-quantize takes at most {_MAX_TEXT} bytes; leave out --compat"
        )
    if kind == "int":
        return KVOverride(key, kind, _number(INTEGER, leading_number, text, value, compat))
    if kind == "float":
        return KVOverride(key, kind, _number(FLOAT, lambda match: float(match.group()), text, value, compat))
    if kind == "bool":
        if value not in ("true", "false"):
            raise OptionError(f"--override-kv {text!r}: a bool is true or false")
        return KVOverride(key, kind, value == "true")
    return KVOverride(key, kind, value)


def _number(
    pattern: re.Pattern[str], convert: Callable[[re.Match[str]], int | float], text: str, value: str, compat: bool
) -> int | float:
    match = pattern.match(value)
    if match is None or (match.end() != len(value) and not compat):
        if compat:
            return 0
        raise OptionError(f"--override-kv {text!r}: {value!r} is not a number")
    return convert(match)


def parse_split_size(text: str) -> int:
    """`500M` or `2G` in bytes: decimal units, as llama-gguf-split has them."""
    match = re.fullmatch(r"([0-9]+)([MG])", text)
    if match is None or leading_number(match) == 0:
        raise OptionError(f"--split-max-size {text[:60]!r}: write a number and M or G, for instance 2G")
    return leading_number(match) * (10**6 if match[2] == "M" else 10**9)
