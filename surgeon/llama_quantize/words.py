"""The options of a command line, and what they make of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from surgeon.errors import SurgeonError
from surgeon.figures import typed_number
from surgeon.llama_quantize.arguments import (
    CHAT_TEMPLATE,
    FLOAT,
    OptionError,
    parse_layers,
    parse_override,
    parse_setting,
    read_type_file,
    rule,
    text_in,
)
from surgeon.plan.plan import KVOverride, Plan, TypeRule, tensor_type, with_key, without_key

FLAGS = frozenset(
    "--allow-requantize --leave-output-tensor --pure --keep-split --dry-run --json --compat --hide-imatrix --i-know "
    "--overwrite --resume".split()
)
_VALUES = frozenset(
    "--imatrix --output-tensor-type --token-embedding-type --max-buffer-size --recipe --save-imatrix "
    "--heal --heal-tokens --moments --feedback-rounds --shrink --save-moments "
    "--split-max-size --prune-experts --experts-by --scheduler".split()
)


@dataclass(slots=True)
class Words:
    """The options as they were read."""

    rules: list[TypeRule] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    keys: list[KVOverride] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)


def read_words(arguments: list[str]) -> Words:
    """Options up to the first word that does not start with `--`; the rest is positional."""
    words = Words()
    special: dict[str, Callable[[str], object]] = {
        "--tensor-type": lambda text: words.rules.append(rule(text)),
        "--tensor-type-file": lambda text: words.rules.extend(read_type_file(text)),
        "--prune-layers": words.pruned.append,
        "--override-kv": words.overrides.append,
        "--set": lambda text: words.keys.append(parse_setting(text)),
        "--delete-key": words.deleted.append,
        "--chat-template-file": lambda text: words.keys.append(KVOverride(CHAT_TEMPLATE, "str", text_in(text))),
        "--include-weights": words.include.append,
        "--exclude-weights": words.exclude.append,
    }
    at = 0
    while at < len(arguments) and arguments[at].startswith("--"):
        option = arguments[at]
        at += 1
        if option in FLAGS:
            words.flags.add(option)
            continue
        if option not in special and option not in _VALUES:
            raise OptionError(_unknown(option, [*FLAGS, *_VALUES, *special]))
        if at == len(arguments):
            raise OptionError(f"{option} needs an argument")
        if option in special:
            special[option](arguments[at])
        else:
            words.values[option] = arguments[at]
        at += 1
    words.positional = arguments[at:]
    if words.include and words.exclude:
        raise OptionError("--include-weights and --exclude-weights exclude each other; use one of them")
    return words


def _unknown(option: str, known: Iterable[str]) -> str:
    import difflib

    name, equals, _ = option.partition("=")
    if equals and name in known:
        return f"{option}: write {name} and its argument as two words"
    near = difflib.get_close_matches(option, known, n=1)
    return f"unknown option {option}" + (f"; did you mean {near[0]}?" if near else "; see surgeon quantize --help")


def plan_of(words: Words, base: Plan) -> Plan:
    """`base` with the options applied: rules of the command line come before its own, lists are joined."""
    flags, values = words.flags, words.values
    compat = base.compat or "--compat" in flags
    for key in words.keys:
        base = with_key(base, key)
    for name in words.deleted:
        base = without_key(base, name)
    return replace(
        base,
        rules=(*words.rules, *base.rules),
        pruned=base.pruned.union(*(parse_layers(text, compat=compat) for text in words.pruned)),
        output_tensor_type=_type_option(values, "--output-tensor-type", base.output_tensor_type),
        token_embedding_type=_type_option(values, "--token-embedding-type", base.token_embedding_type),
        include_weights=tuple(words.include) or base.include_weights,
        exclude_weights=tuple(words.exclude) or base.exclude_weights,
        override_kv=(*base.override_kv, *(parse_override(text, compat=compat) for text in words.overrides)),
        pure=base.pure or "--pure" in flags,
        leave_output_tensor=base.leave_output_tensor or "--leave-output-tensor" in flags,
        allow_requantize=base.allow_requantize or "--allow-requantize" in flags,
        keep_split="--keep-split" in flags or (base.keep_split and "--split-max-size" not in values),
        hide_imatrix=base.hide_imatrix or "--hide-imatrix" in flags,
        know_risks=base.know_risks or "--i-know" in flags,
        shrink=_shrink(values, base.shrink),
        feedback_rounds=_rounds(values, base.feedback_rounds),
        compat=compat,
        imatrix_file=values.get("--imatrix", base.imatrix_file),
    )


def _shrink(values: dict[str, str], base: float | None) -> float | None:
    text = values.get("--shrink")
    if text is None:
        return base
    if FLOAT.fullmatch(text) is None or not 0 <= float(text) <= 1:
        raise OptionError(f"--shrink {text!r}: a number from 0 (the moments as they are) to 1 (their diagonal alone)")
    return float(text)


def _rounds(values: dict[str, str], base: int) -> int:
    text = values.get("--feedback-rounds")
    if text is None:
        return base
    number = typed_number(text)
    if number is None or number < 0:
        raise OptionError(f"--feedback-rounds {text[:60]!r}: a whole number from 0 on")
    return number


def _type_option(values: dict[str, str], option: str, base: str | None) -> str | None:
    if option not in values:
        return base
    try:
        return tensor_type(values[option])
    except SurgeonError as error:
        raise OptionError(f"{option}: {error}") from None
