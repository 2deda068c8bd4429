"""Recipes and llama-quantize: the command that does what a recipe does, and recipes made from commands and models.

Where the model is at hand the exported command is checked by resolving it as llama-quantize would: every tensor that
would get another type gets a rule of its own, and what still differs is reported.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError
from surgeon.figures import typed_number
from surgeon.llama_quantize.arguments import read_type_file
from surgeon.llama_quantize.options import buffer_bytes, split_bytes
from surgeon.llama_quantize.words import plan_of, read_words
from surgeon.machine import MOST_THREADS
from surgeon.model.layer_names import split_layer, with_layer
from surgeon.model.model import Model
from surgeon.plan.file_types import FILE_TYPES, find_file_type
from surgeon.plan.plan import Plan, TypeRule, WriteSettings
from surgeon.plan.recipe import Recipe
from surgeon.resolve.metadata import concrete
from surgeon.resolve.resolve import Resolution, resolve
from surgeon.resolve.tensor_facts import facts_of
from surgeon.terminal import escaped

if TYPE_CHECKING:
    from surgeon.imatrix.imatrix import Imatrix

_ROUNDS = 8  # every rule added may shift llama-quantize's layer counters, and so ask for others

# Keys that only surgeon writes; that they are missing is not a fault of the command.
_OWN_KEYS = "surgeon."


@dataclass(frozen=True, slots=True)
class Exported:
    """words: the command; rules: for a `--tensor-type-file`, in order; wrong: tensors that would get another type, in
    words; remarks: what else differs.
    """

    words: tuple[str, ...]
    rules: tuple[TypeRule, ...]
    wrong: tuple[str, ...]
    remarks: tuple[str, ...]

    def command(self, type_file: str | None = None) -> str:
        """One line for a shell; with `type_file` the rules are read from it."""
        if type_file is not None and self.rules:
            options = ["--tensor-type-file", type_file]
        else:
            options = [word for rule in self.rules for word in ("--tensor-type", str(rule))]
        return " ".join(map(_quoted, [self.words[0], *options, *self.words[1:]]))


def _quoted(word: str) -> str:
    """A word as a shell reads it; what a terminal would obey is written as `$'\\x1b'`, which bash, zsh and ksh know."""
    if escaped(word) == word:
        return shlex.quote(word)
    raw = word.replace("\\", "\\\\").replace("'", "\\'").encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw) + "'"


def export(
    recipe: Recipe, source: str, output: str, model: Model | None = None, imatrix: Imatrix | None = None
) -> Exported:
    """The llama-quantize command that turns `source` into `output` as `recipe` does."""
    plan = recipe.plan
    rules = [*_by_hand_rules(plan), *plan.rules]
    wrong: list[str] = []
    remarks = _remarks(recipe)
    if model is not None:
        rules, wrong, more = _checked(plan, rules, model, imatrix)
        remarks += more
    else:
        remarks += _unchecked(plan)
    return Exported(tuple(_words(recipe, source, output, model)), tuple(rules), tuple(wrong), tuple(remarks))


def _words(recipe: Recipe, source: str, output: str, model: Model | None) -> list[str]:
    plan = recipe.plan
    words = ["llama-quantize"]
    for option in ("allow_requantize", "leave_output_tensor", "pure", "keep_split"):
        words += [f"--{option.replace('_', '-')}"] if getattr(plan, option) else []
    imatrix = plan.imatrix_file or recipe.imatrix
    words += ["--imatrix", imatrix] if imatrix else []
    for part in plan.include_weights:
        words += ["--include-weights", part]
    for part in plan.exclude_weights:
        words += ["--exclude-weights", part]
    words += ["--output-tensor-type", plan.output_tensor_type.lower()] if plan.output_tensor_type else []
    words += ["--token-embedding-type", plan.token_embedding_type.lower()] if plan.token_embedding_type else []
    words += ["--prune-layers", ",".join(map(str, sorted(plan.pruned)))] if plan.pruned else []
    for override in plan.override_kv:
        stored = model.file.kv.get(override.key) if model is not None else None
        words += ["--override-kv", str(concrete(override, stored))]
    settings = recipe.settings
    words += ["--max-buffer-size", str(max(1, settings.max_buffer_bytes >> 20))] if settings.max_buffer_bytes else []
    words += [source, output, plan.file_type]
    return words + ([str(settings.threads)] if settings.threads else [])


def _by_hand_rules(plan: Plan) -> list[TypeRule]:
    """The types set by hand as rules for the numbers that llama-quantize matches, those of the output."""
    if not plan.pruned:
        return rules_for(plan.types)
    return rules_for((name, kind) for old, kind in plan.types if (name := _renumbered(old, plan.pruned)) is not None)


def _renumbered(name: str, pruned: frozenset[int]) -> str | None:
    layer, _ = split_layer(name)
    if layer is None or layer in pruned:
        return name if layer is None else None
    return with_layer(name, {layer: layer - sum(gone < layer for gone in pruned)})


def rules_for(types: Iterable[tuple[str, str]]) -> list[TypeRule]:
    """Rules that give exactly these tensors exactly these types, one for all layers of a kind with the same type."""
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    others: list[TypeRule] = []
    for name, kind in types:
        layer, rest = split_layer(name)
        if layer is not None:
            layers[rest, kind].append(layer)
        else:
            others.append(TypeRule(f"^{re.escape(name)}$", kind))
    blocks = []
    for (rest, kind), numbers in layers.items():
        which = "|".join(map(str, sorted(numbers)))
        blocks.append(TypeRule(rf"^blk\.{f'({which})' if len(numbers) > 1 else which}\.{re.escape(rest)}$", kind))
    return [*others, *blocks]


def _checked(
    plan: Plan, rules: Sequence[TypeRule], model: Model, imatrix: Imatrix | None
) -> tuple[list[TypeRule], list[str], list[str]]:
    """The rules that make llama-quantize choose what the plan chooses; tensors it cannot; what else differs."""
    wanted = resolve(model, plan, imatrix)
    goal = {op.source: op.to_type for op in wanted.kept}
    # With rules for new layer numbers in front, those of the plan may mean other tensors: they are replaced whole.
    own = list(rules) if plan.compat or not plan.pruned else []
    exact: dict[str, str] = {}
    for _ in range(_ROUNDS):
        got = _as_llama_quantize(plan, [*rules_for(exact.items()), *own], model, imatrix)
        names = {op.source: op.name for op in got.kept}
        different = [op.source for op in got.kept if op.source in goal and op.to_type != goal[op.source]]
        fresh = [source for source in different if names[source] not in exact]
        if not fresh:
            break
        exact |= {names[source]: goal[source] for source in fresh}
    wrong = [f"{op.source}: {op.to_type} instead of {goal[op.source]}" for op in got.kept if op.source in different]
    return [*rules_for(exact.items()), *own], wrong, _differences(wanted, got)


def _as_llama_quantize(plan: Plan, rules: list[TypeRule], model: Model, imatrix: Imatrix | None) -> Resolution:
    bare = replace(plan, types=(), healing=None, pruned_experts=())
    return resolve(model, replace(bare, compat=True, rules=tuple(rules)), imatrix)


def _differences(wanted: Resolution, got: Resolution) -> list[str]:
    remarks = [_refusal(problem.text) for problem in got.errors if problem not in wanted.errors]
    ours, theirs = dict(wanted.metadata), dict(got.metadata)
    changed = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and not key.startswith(_OWN_KEYS)]
    if changed:
        remarks.append(f"llama-quantize writes other metadata: {', '.join(sorted(changed))}")
    if wanted.alignment != got.alignment:
        remarks.append(f"llama-quantize lays tensors out at {got.alignment}, the model says {wanted.alignment}")
    if any(op.slice for op in wanted.kept if op.tensor.layer is None):
        remarks.append("llama-quantize does not cut the pruned layers out of tensors that hold all layers")
    return remarks


def _refusal(text: str) -> str:
    """An error of `--compat`, said of the command that llama-quantize is given."""
    text = text.removesuffix("; leave out --compat")
    return text if "llama-quantize refuses" in text else f"llama-quantize refuses this: {text}"


def _remarks(recipe: Recipe) -> list[str]:
    """What llama-quantize has no option for."""
    remarks = []
    if recipe.plan.pruned_experts:
        remarks.append("llama-quantize cannot prune experts: write a COPY with them pruned first, and quantize that")
    if recipe.plan.hide_imatrix:
        remarks.append("llama-quantize always stores the imatrix's path")
    if recipe.plan.healing:
        remarks.append("llama-quantize cannot heal: the pruned layers are only left out")
    if recipe.moments:
        remarks.append("llama-quantize has no feedback encoder: the same types and sizes, another file")
    if recipe.plan.deleted_keys:
        remarks.append(f"llama-quantize leaves no key out: {', '.join(recipe.plan.deleted_keys)}")
    if recipe.settings.split_max_bytes:
        remarks.append("llama-quantize splits only with --keep-split: use llama-gguf-split --split-max-size afterwards")
    return remarks


def _unchecked(plan: Plan) -> list[str]:
    """What can be said without the model."""
    remarks = []
    base = FILE_TYPES[plan.file_type].base
    if (plan.types or plan.rules) and base in (None, "F32", "F16", "BF16"):
        remarks.append(f"llama-quantize ignores --tensor-type with TYPE {plan.file_type}")
    if plan.compat:
        return remarks
    if plan.pruned and any(char.isdigit() for rule in plan.rules for char in rule.pattern):
        remarks.append(
            "llama-quantize matches rules with the layer numbers after pruning; name the model to translate them"
        )
    if plan.pruned:
        remarks.append("llama-quantize leaves the metadata of pruned layers as it is")
    if (plan.types or plan.rules) and not plan.pure:
        remarks.append("in llama-quantize a rule may shift the types of other layers; name the model to check this")
    return remarks


def from_command(command: str) -> Recipe:
    """The recipe of a llama-quantize command line; its input and output are not part of it.

    Raises SurgeonError for what cannot be read, and for options of `surgeon quantize` that no recipe can keep.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SurgeonError(f"the command cannot be read: {error}") from None
    while words and not words[0].startswith("--") and not words[0].endswith(".gguf"):
        words.pop(0)
    read = read_words(words)
    lost = [option for option in ("--recipe", "--heal", "--prune-experts") if option in read.values]
    if lost:
        raise SurgeonError(f"{lost[0]}: a recipe made from a command cannot keep it; leave it out")
    after = list(read.positional[1:])
    if after and find_file_type(after[0]) is None:
        after.pop(0)  # the output
    kind = find_file_type(after[0]) if after else None
    if kind is None:
        raise SurgeonError("the command names no TYPE, for instance Q4_K_M")
    moments = read.values.get("--moments")
    threads = typed_number(after[1]) if len(after) > 1 else None  # what else follows is the shell's
    return Recipe(
        replace(plan_of(read, Plan()), file_type=kind.name, moments_file=moments),
        imatrix=read.values.get("--imatrix"),
        settings=WriteSettings(min(max(threads or 0, 0), MOST_THREADS), buffer_bytes(read), split_bytes(read)),
        moments=moments,
    )


def from_type_file(path: str, file_type: str) -> Recipe:
    """A recipe of the rules in a `--tensor-type-file`, over the mix `file_type`."""
    kind = find_file_type(file_type)
    if kind is None:
        raise SurgeonError(f"unknown TYPE {file_type!r}")
    return Recipe(Plan(file_type=kind.name, rules=tuple(read_type_file(path))))


def from_model(model: Model) -> Recipe:
    """The types of an existing model as rules: what can be quantized shall be as it is there.

    Raises SurgeonError when nothing in it is quantized, for then there is nothing to take over.
    """
    kind = _file_type_of(model)
    types = [(one.name, one.from_type) for one in facts_of(model).by_layer if one.kept is None]
    return Recipe(Plan(file_type=kind, rules=tuple(_generalised(types))), made_from=model.file.path.name)


def _file_type_of(model: Model) -> str:
    """The TYPE of `general.file_type`, or the one whose base type most tensors have."""
    stored = model.file.kv.get("general.file_type")
    number = stored.small() if stored is not None else None
    quantized = [kind for kind in FILE_TYPES.values() if kind.base not in (None, "F32", "F16", "BF16")]
    for kind in reversed(quantized):  # the full name of a mix comes after its alias
        if kind.number == number:
            return kind.name
    sizes: dict[str, int] = defaultdict(int)
    for tensor in model.tensors:
        sizes[tensor.type_name] += tensor.n_elements
    for name, _ in sorted(sizes.items(), key=lambda item: -item[1]):
        for kind in reversed(quantized):
            if kind.base == name:
                return kind.name
    raise SurgeonError(f"{model.file.path}: nothing in it is quantized; there are no types to copy")


def _generalised(types: list[tuple[str, str]]) -> list[TypeRule]:
    """As `rules_for`, but a kind that has one type in all layers is not tied to their numbers."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, kind in types:
        layer, rest = split_layer(name)
        if layer is not None:
            kinds[rest].add(kind)
    uniform = {rest: found.pop() for rest, found in kinds.items() if len(found) == 1}
    tied = [(name, kind) for name, kind in types if split_layer(name)[0] is None or split_layer(name)[1] not in uniform]
    return [*rules_for(tied), *(TypeRule(rf"^blk\.[0-9]+\.{re.escape(rest)}$", kind) for rest, kind in uniform.items())]
