"""A plan as a TOML file: everything that decides the output, to be kept, shared and run again.

    format = 1
    type = "Q4_K_M"
    rules = ["attn_v=q6_k"]         # first match wins
    prune = [26, 29]                # layer numbers of the input

    [imatrix]
    file = "calibration.gguf"       # beside the recipe, unless it is an absolute path
    sha256 = "521a558f…"

    [prune-experts]                 # layer = its experts, numbers of the input
    3 = [0, 17]

    [heal]
    file = "pruned.heal.gguf"       # beside the recipe, unless it is an absolute path
    id = "6be1c29a…"

    [moments]                       # second moments: the feedback encoder
    file = "calibration.moments.gguf"
    digest = "e40f8ae8…"            # of what the file holds
    rounds = 1
    shrink = 0.5                    # left out: chosen for each input

    [types]                         # set by hand, before any rule
    "blk.0.ffn_down.weight" = "q8_0"

    [reasons]                       # of types in the table above that `surgeon fit` worked out
    "blk.0.ffn_down.weight" = "fit: +0.2 MB over Q6_K here saves .0004"

    [[override_kv]]
    key = "general.name"
    kind = "str"
    value = "smaller"

The same recipe, model and importance matrix give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from surgeon.errors import SurgeonError
from surgeon.machine import MOST_THREADS
from surgeon.plan.file_types import parse_file_type
from surgeon.plan.plan import DEFAULT_SETTINGS, Healing, KVOverride, Plan, WriteSettings, parse_rule, tensor_type
from surgeon.terminal import escaped
from surgeon.toml_text import read_toml
from surgeon.whole_files import write_whole
from surgeon.write_guard import NEW, Kind, Permit

FORMAT = 1

# TOML key -> attribute of Plan
_FLAGS = {
    name.replace("_", "-"): name
    for name in "pure leave_output_tensor allow_requantize keep_split hide_imatrix compat".split()
} | {"i-know": "know_risks"}
_TYPES = {"output-tensor-type": "output_tensor_type", "token-embedding-type": "token_embedding_type"}
# TOML key -> attribute of WriteSettings
_NUMBERS = {"threads": "threads", "max-buffer-bytes": "max_buffer_bytes", "split-max-bytes": "split_max_bytes"}
_MOST = {"threads": MOST_THREADS, "prune": 2**32 - 1}
_KNOWN = set(
    "format type rules prune prune-experts heal imatrix moments types reasons override_kv delete-keys made-from".split()
)


class RecipeError(SurgeonError):
    """A recipe that cannot be read: file, key, what was found, what is expected."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """imatrix: path of the importance matrix, as far as known from here; made_from: a remark on its origin; moments,
    moments_digest: path and digest of the second moments, for the feedback encoder.
    """

    plan: Plan
    imatrix: str | None = None
    imatrix_sha256: str | None = None
    settings: WriteSettings = DEFAULT_SETTINGS
    made_from: str | None = None
    moments: str | None = None
    moments_digest: str | None = None


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; raises RecipeError naming the key that is wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    return read_recipe(text, path.parent, str(path))


def read_recipe(text: str, folder: Path, name: str = "recipe") -> Recipe:
    """The recipe in `text`; paths are relative to `folder`. Raises RecipeError beginning with `name`."""
    try:
        table = read_toml(text)
    except ValueError as error:
        raise RecipeError(f"{name}: not valid TOML: {error}") from None
    try:
        return _from_table(table, folder)
    except SurgeonError as error:
        raise RecipeError(f"{name}: {str(error)[:500]}") from None


def save_recipe(recipe: Recipe, path: str | os.PathLike[str], permit: Permit = NEW) -> None:
    """Write a recipe whole or not at all, by default only where there is no file; raises SurgeonError."""
    path = Path(path)
    try:
        data = to_toml(recipe, path.parent).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(f"{path}: cannot be written: {error.object!r:.60} is not UTF-8, as TOML must be") from None
    write_whole(path, data, Kind.TEXT, permit)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Hash of a file in hexadecimal, worked out anew when the file was; raises RecipeError when it cannot be read."""
    try:
        known = os.stat(path)
        return _sha256(os.fspath(path), known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


@lru_cache(8)
def _sha256(path: str, *_version: int) -> str:
    """The screen keeps its plan, with this hash, after every few edits; the file may be hundreds of megabytes."""
    import hashlib  # loads OpenSSL, and `--help` hashes nothing

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other_imatrix(path: str, sha256: str | None) -> None:
    """Raises SurgeonError where the file is not the one that a recipe knows by this hash (None: any)."""
    if sha256 and file_sha256(path) != sha256:
        raise SurgeonError(f"{path}: is not the imatrix the recipe was made with (its sha256 differs)")


def refuse_other_moments(path: str, digest: str, wanted: str | None) -> None:
    """Raises SurgeonError where second moments are not those that a recipe knows by their digest (None: any)."""
    if wanted and digest != wanted:
        raise SurgeonError(f"{path}: not the second moments the recipe was made with (their digest differs)")


def to_toml(recipe: Recipe, folder: Path = Path()) -> str:
    """The recipe as text, for a file in `folder`; what has its default is left out."""
    plan = recipe.plan
    lines = [f"format = {FORMAT}", f"type = {_text(plan.file_type)}"]
    lines += [f"made-from = {_text(recipe.made_from)}"] if recipe.made_from else []
    lines += [f"{key} = true" for key, name in _FLAGS.items() if getattr(plan, name)]
    lines += [f"{key} = {_text(getattr(plan, name).lower())}" for key, name in _TYPES.items() if getattr(plan, name)]
    lines += [f"{key} = {number}" for key, name in _NUMBERS.items() if (number := getattr(recipe.settings, name))]
    if plan.rules:
        lines += ["rules = [", *(f"    {_text(str(rule))}," for rule in plan.rules), "]"]
    if plan.pruned:
        lines.append(f"prune = {sorted(plan.pruned)}")
    if plan.deleted_keys:
        lines.append(f"delete-keys = [{', '.join(map(_text, plan.deleted_keys))}]")
    lines += _imatrix_lines(recipe, folder) + _moments_lines(recipe, folder)
    if plan.pruned_experts:
        lines += ["", "[prune-experts]", *(f"{layer} = {list(gone)}" for layer, gone in plan.pruned_experts)]
    if plan.healing is not None:
        file = _relative(plan.healing.file, folder)
        lines += ["", "[heal]", f"file = {_text(file)}", f"id = {_text(plan.healing.id)}"]
    if plan.types:
        lines += ["", "[types]", *(f"{_text(name)} = {_text(kind.lower())}" for name, kind in plan.types)]
    if plan.reasons:
        lines += ["", "[reasons]", *(f"{_text(name)} = {_text(why)}" for name, why in plan.reasons)]
    for override in plan.override_kv:
        value = _text(override.value) if isinstance(override.value, str) else str(override.value).lower()
        lines += ["", "[[override_kv]]", f"key = {_text(override.key)}", f"kind = {_text(override.kind)}"]
        lines.append(f"value = {value}")
    return "\n".join(lines) + "\n"


def _imatrix_lines(recipe: Recipe, folder: Path) -> list[str]:
    plan = recipe.plan
    if not (recipe.imatrix or plan.imatrix_file or plan.include_weights or plan.exclude_weights):
        return []
    lines = ["", "[imatrix]"]
    file = _relative(recipe.imatrix, folder) if recipe.imatrix else None
    # The name in the metadata must not depend on where the recipe is run.
    stored = plan.imatrix_file or recipe.imatrix
    if file:
        lines.append(f"file = {_text(file)}")
    if recipe.imatrix_sha256:
        lines.append(f"sha256 = {_text(recipe.imatrix_sha256)}")
    if stored and stored != file:
        lines.append(f"stored-as = {_text(stored)}")
    for key, parts in (("include", plan.include_weights), ("exclude", plan.exclude_weights)):
        if parts:
            lines.append(f"{key} = [{', '.join(map(_text, parts))}]")
    return lines


def _moments_lines(recipe: Recipe, folder: Path) -> list[str]:
    plan = recipe.plan
    lines = [f"file = {_text(_relative(recipe.moments, folder))}"] if recipe.moments else []
    lines += [f"digest = {_text(recipe.moments_digest)}"] if recipe.moments_digest else []
    lines += [f"rounds = {plan.feedback_rounds}"] if plan.feedback_rounds != Plan().feedback_rounds else []
    lines += [f"shrink = {plan.shrink}"] if plan.shrink is not None else []
    return ["", "[moments]", *lines] if lines else []


def _relative(path: str, folder: Path) -> str:
    """Relative to the recipe when it lies beside or below it, so that the folder may be moved; else absolute."""
    absolute = Path(path).absolute()
    try:
        return absolute.relative_to(folder.absolute()).as_posix()
    except ValueError:
        return str(absolute)


def _text(text: object) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but DEL must be escaped too, and what a terminal obeys should."""
    return "".join(map(_letter, json.dumps(str(text), ensure_ascii=False)))


def _letter(letter: str) -> str:
    if escaped(letter) == letter or "\ud800" <= letter <= "\udfff":  # halves of pairs are refused when it is saved
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def _from_table(table: Mapping[str, Any], folder: Path) -> Recipe:
    if table.get("format") != FORMAT:
        raise RecipeError(f"format = {table.get('format')!r}; this surgeon reads format = {FORMAT}")
    unknown = set(table) - _KNOWN - _FLAGS.keys() - _TYPES.keys() - _NUMBERS.keys()
    if unknown:
        raise RecipeError(f"unknown key {min(unknown)!r}; is it misspelt, or the recipe of a newer surgeon?")
    imatrix = _table(table, "imatrix", {"file", "sha256", "stored-as", "include", "exclude"})
    flags: dict[str, Any] = {name: _get(table, key, bool, False) for key, name in _FLAGS.items()}
    types: dict[str, Any] = {name: _tensor_type(table, key) for key, name in _TYPES.items()}
    moments = _table(table, "moments", {"file", "digest", "rounds", "shrink"})
    moments_file = _get(moments, "file", str, None)
    file = _get(imatrix, "file", str, None)
    plan = Plan(
        file_type=parse_file_type(_get(table, "type", str, "COPY")).name,
        rules=tuple(parse_rule(text) for text in _list(table, "rules", str)),
        types=tuple(sorted((name, tensor_type(f"{kind}")) for name, kind in _get(table, "types", dict, {}).items())),
        reasons=tuple(sorted((name, str(why)) for name, why in _get(table, "reasons", dict, {}).items())),
        pruned=frozenset(_list(table, "prune", int)),
        pruned_experts=_expert_sets(_get(table, "prune-experts", dict, {})),
        include_weights=tuple(_list(imatrix, "include", str)),
        exclude_weights=tuple(_list(imatrix, "exclude", str)),
        override_kv=tuple(_override(entry) for entry in _list(table, "override_kv", dict)),
        imatrix_file=_get(imatrix, "stored-as", str, file),
        healing=_healing(table, folder),
        moments_file=str(folder / moments_file) if moments_file else None,
        shrink=_shrink(moments),
        feedback_rounds=_get(moments, "rounds", int, Plan().feedback_rounds),
        deleted_keys=tuple(_list(table, "delete-keys", str)),
    )
    return Recipe(
        plan=replace(plan, **flags, **types),
        imatrix=str(folder / file) if file else None,
        imatrix_sha256=_get(imatrix, "sha256", str, None),
        settings=WriteSettings(
            threads=_get(table, "threads", int, 0),
            max_buffer_bytes=_get(table, "max-buffer-bytes", int, None),
            split_max_bytes=_get(table, "split-max-bytes", int, 0),
        ),
        made_from=_get(table, "made-from", str, None),
        moments=str(folder / moments_file) if moments_file else None,
        moments_digest=_get(moments, "digest", str, None),
    )


def _healing(table: Mapping[str, Any], folder: Path) -> Healing | None:
    heal = _table(table, "heal", {"file", "id"})
    file, number = _get(heal, "file", str, None), _get(heal, "id", str, None)
    if (file is None) != (number is None):
        raise RecipeError("[heal] needs both file and id")
    return None if file is None or number is None else Healing(str(folder / file), number)


def _table(table: Mapping[str, Any], key: str, known: set[str]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _get(table, key, dict, {})
    unknown = set(found) - known
    if unknown:
        raise RecipeError(f"unknown key {min(unknown)!r} in [{key}]")
    return found


def _get(table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key, default)
    if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RecipeError(f"{key} = {value!r:.100}: a {kind.__name__} is expected")
    if kind is int and isinstance(value, int) and value < 0:
        raise RecipeError(f"{key} = {value}: must be a whole number ≥ 0")
    if kind is int and isinstance(value, int) and value > _MOST.get(key, 2**63 - 1):
        raise RecipeError(f"{key} = {value}: at most {_MOST.get(key, 2**63 - 1)}")
    return value


def _shrink(table: Mapping[str, Any]) -> float | None:
    value = table.get("shrink")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RecipeError(f"shrink = {value!r}: a number from 0 to 1 is expected")
    return float(value)


def _list(table: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    values = _get(table, key, list, [])
    check: Callable[[object], Any] = lambda value: _get({key: value}, key, kind, None)  # noqa: E731
    return [check(value) for value in values]


def _expert_sets(table: Mapping[str, Any]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    sets = {}
    for layer in table:
        if not layer.isdecimal():
            raise RecipeError(f"[prune-experts] {layer!r}: must be the number of a layer")
        sets[int(layer)] = tuple(sorted(set(_list(table, layer, int))))
    return tuple((layer, sets[layer]) for layer in sorted(sets) if sets[layer])


def _tensor_type(table: Mapping[str, Any], key: str) -> str | None:
    text = _get(table, key, str, None)
    return None if text is None else tensor_type(text)


def _override(entry: Mapping[str, Any]) -> KVOverride:
    kinds = {"int": int, "float": float, "bool": bool, "str": str, "auto": str}
    key, kind, value = entry.get("key"), entry.get("kind"), entry.get("value")
    if (
        not isinstance(key, str)
        or not key
        or not isinstance(kind, str)
        or kind not in kinds
        or set(entry) != {"key", "kind", "value"}
    ):
        raise RecipeError(
            f"override_kv {dict(entry)!r:.100}: key, kind (int, float, bool, str or auto) and value are needed"
        )
    if not isinstance(value, (int, float, str)) or type(value) is not kinds[kind]:
        raise RecipeError(f"override_kv {key}: {value!r:.100} is not a valid {kind}")
    return KVOverride(key, kind, value)
