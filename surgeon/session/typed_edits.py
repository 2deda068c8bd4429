r"""What `:` understands: rules in llama-quantize's syntax, layers to prune, a base type, llama-quantize's options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from surgeon.errors import SurgeonError
from surgeon.layer_lists import read_spans, spans
from surgeon.llama_quantize.translation import from_command
from surgeon.llama_quantize.words import plan_of, read_words
from surgeon.plan import plan as plans
from surgeon.plan.file_types import FILE_TYPES
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe
from surgeon.session.experts.grid import pruned_least
from surgeon.session.session import Session

# Options that are about a run, not about the plan: they have keys of their own.
_NOT_HERE = {
    "--imatrix": "i loads an imatrix",
    "--moments": "i loads second moments, and finds those beside an imatrix",
    "--save-moments": "only for the command line",
    "--recipe": "o loads a recipe",
    "--dry-run": "the tree already shows what --dry-run prints",
    "--json": "only for the command line",
    "--overwrite": "w asks before overwriting a file",
    "--resume": "w resumes an interrupted write",
    "--save-imatrix": "only for the command line",
    "--split-max-size": "only for the command line",
    "--max-buffer-size": "only for the command line",
    "--prune-experts": "write experts 25%, or experts 16 calls",
    "--experts-by": "write experts 25% calls",
}


# Edits typed or pasted together; a rule has no blank in it, so none can hold what separates them.
_SEPARATOR = re.compile(r";\s+|;$|\n")
_QUANTIZE = re.compile(r"(^|[\s/])((llama-)?quantize)(\.exe)?(\s|$)")


@dataclass(frozen=True)
class Edit:
    """The plan a command leads to, and the label that undo shows. recipe: of a whole llama-quantize command, whose
    imatrix is still to be loaded."""

    plan: Plan
    label: str
    recipe: Recipe | None = None


def parse_command(text: str, session: Session) -> Edit:
    """The edit that `text` asks for, or several with `;` between; raises SurgeonError with one line for the user."""
    if is_quantize_command(text):
        return _whole_command(session, text)
    plan, labels = session.plan, []
    for part in _SEPARATOR.split(text.strip()):
        if part.strip():
            edit = _single(session, plan, part.strip())
            plan = edit.plan
            labels.append(edit.label)
    if not labels:
        raise SurgeonError(_KNOWN)
    return Edit(plan, "; ".join(labels))


_KNOWN = "type attn_v=q6_k, prune 26,29, restore 26, base q4_k_m, 26 to go there, or an option such as --pure"


def is_quantize_command(text: str) -> bool:
    """Whether `text` calls llama-quantize (or `surgeon quantize`): a word of that name before the first option."""
    return _QUANTIZE.search(text.partition(" --")[0].partition(".gguf")[0]) is not None


def command_in(text: str) -> str:
    """The llama-quantize command in a file of one: comments, other lines and `\\` at the ends of lines left out.

    Raises SurgeonError where there is none.
    """
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    found = next((line for line in lines if is_quantize_command(line)), None)
    if found is None:
        raise SurgeonError("no llama-quantize command in it")
    return found


def _whole_command(session: Session, text: str) -> Edit:
    """The whole plan of a llama-quantize command: nothing of the present one stays."""
    recipe = from_command(text)
    strange = recipe.plan.pruned - {layer.index for layer in session.model.layers}
    if strange:
        raise SurgeonError(_no_layer(session, strange))
    return Edit(recipe.plan, f"llama-quantize … {recipe.plan.file_type}", recipe)


def _no_layer(session: Session, layers: frozenset[int] | set[int]) -> str:
    known = [layer.index for layer in session.model.layers]
    return f"layer {spans(layers)} does not exist; this model has layers {spans(known)}"


def _single(session: Session, plan: Plan, text: str) -> Edit:
    word, _, rest = text.partition(" ")
    if word.lower() in _COMMANDS and rest.strip():
        return _COMMANDS[word.lower()](session, plan, rest.strip())
    if text.startswith("--"):
        return _options(session, plan, text)
    if "=" in text:
        rules = [plans.parse_rule(part) for part in text.split()]
        for rule in rules:
            plan = plans.with_rule(plan, rule)
        return Edit(plan, f"rule {' '.join(map(str, rules))}")
    if text.upper() in FILE_TYPES:
        return _base(session, plan, text)
    raise SurgeonError(_KNOWN)


def _prune(session: Session, plan: Plan, rest: str) -> Edit:
    layers = _layers(session, rest)
    known = {layer.index for layer in session.model.layers}
    if known <= plan.pruned | layers:
        raise SurgeonError("this would prune every layer: a model needs at least one")
    return Edit(plans.with_pruned(plan, layers), f"prune {spans(layers)}")


def _restore(session: Session, plan: Plan, rest: str) -> Edit:
    layers = _layers(session, rest)
    return Edit(plans.without_pruned(plan, layers), f"restore {spans(layers)}")


def _experts(session: Session, plan: Plan, rest: str) -> Edit:
    amount, _, measure = rest.partition(" ")
    return Edit(pruned_least(session, plan, amount, measure.strip() or "saliency"), f"experts {rest}")


def _base(session: Session, plan: Plan, rest: str) -> Edit:
    plan = plans.with_file_type(plan, rest)
    return Edit(plan, f"base type {plan.file_type}")


_COMMANDS: dict[str, Callable[[Session, Plan, str], Edit]] = {
    "prune": _prune,
    "restore": _restore,
    "base": _base,
    "type": _base,
    "experts": _experts,
}


def _layers(session: Session, text: str) -> frozenset[int]:
    """`26,29`, `3-5`, in numbers of the model as it was opened."""
    return read_spans(text, [layer.index for layer in session.model.layers])


def _options(session: Session, plan: Plan, text: str) -> Edit:
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise SurgeonError(f"{text}: {error}") from None
    for argument in arguments:
        if argument in _NOT_HERE:
            raise SurgeonError(f"{argument}: {_NOT_HERE[argument]}")
    words = read_words(arguments)
    if words.positional:
        raise SurgeonError(f"unknown option {words.positional[0]!r}; options start with --")
    changed = plan_of(words, plan)
    strange = changed.pruned - plan.pruned - {layer.index for layer in session.model.layers}
    if strange:
        raise SurgeonError(_no_layer(session, strange))
    return Edit(changed, text)


def option_words(plan: Plan) -> list[str]:
    """The options in force, for the list of rules: what is not visible in any row."""
    words = [f"--{name.replace('_', '-')}" for name in _FLAG_NAMES if getattr(plan, name)]
    words += ["--i-know"] if plan.know_risks else []
    if plan.output_tensor_type:
        words.append(f"--output-tensor-type {plan.output_tensor_type.lower()}")
    if plan.token_embedding_type:
        words.append(f"--token-embedding-type {plan.token_embedding_type.lower()}")
    words += [f"--include-weights {part}" for part in plan.include_weights]
    words += [f"--exclude-weights {part}" for part in plan.exclude_weights]
    words += [f"--override-kv {override}" for override in plan.override_kv]
    return words + [f"--delete-key {key}" for key in plan.deleted_keys]


_FLAG_NAMES = "pure leave_output_tensor allow_requantize keep_split hide_imatrix compat".split()


def without_option(plan: Plan, option: str) -> Plan:
    """The plan without one of `option_words`."""
    name, _, value = option.partition(" ")
    attribute = "know_risks" if name == "--i-know" else name[2:].replace("-", "_")
    if attribute == "delete_key":
        return plans.with_key_as_stored(plan, value)
    if attribute == "override_kv":
        return replace(plan, override_kv=tuple(entry for entry in plan.override_kv if str(entry) != value))
    rest: dict[str, Any] = {attribute: None if attribute.endswith("_type") else False}
    if attribute in ("include_weights", "exclude_weights"):
        rest = {attribute: tuple(part for part in getattr(plan, attribute) if part != value)}
    return replace(plan, **rest)
