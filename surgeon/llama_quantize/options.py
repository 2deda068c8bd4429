"""llama-quantize's command line, word for word, and our own options beside it.

    [options] INPUT.gguf [OUTPUT.gguf] TYPE [threads]

Options come before INPUT and take their argument as the next word (there is no `--option=value`). The second word is
first tried as a TYPE; when it is one, the output is called `ggml-model-<TYPE>.gguf` beside the input. With `--recipe`
TYPE may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.plan.file_types import FILE_TYPES, FileType, find_file_type
from surgeon.plan.plan import KVOverride, Plan, TypeRule, parse_rule, tensor_type, with_key, without_key
from surgeon.plan.recipe import Recipe, load_recipe

USAGE = """\
usage: surgeon quantize [options] INPUT.gguf [OUTPUT.gguf] TYPE [threads]

Options of llama-quantize (all before INPUT):
  --allow-requantize           quantize tensors again that are quantized already
  --leave-output-tensor        copy output.weight as it is
  --pure                       no mix: every tensor that can be quantized gets the base type
  --imatrix F                  importance matrix, GGUF or .dat
  --include-weights TEXT       use only imatrix entries whose name contains TEXT (repeatable)
  --exclude-weights TEXT       leave out imatrix entries whose name contains TEXT (repeatable)
  --output-tensor-type T       type of output.weight
  --token-embedding-type T     type of token_embd.weight
  --tensor-type RE=T           type of tensors whose name matches (repeatable, the first match wins)
  --tensor-type-file F         such rules from a file, separated by blanks
  --prune-layers L0,L1,...     leave out these layers
  --keep-split                 write as many shards as the input has
  --override-kv KEY=TYPE:VALUE set metadata; TYPE is int, float, bool or str (repeatable)
  --dry-run                    print types and sizes; write nothing
  --max-buffer-size MiB        memory for rows in work (default 256)

Options of our own:
  --set KEY=VALUE              set metadata, of the type that the key has (repeatable)
  --delete-key KEY             leave a metadata key out (repeatable)
  --chat-template-file F       set tokenizer.chat_template to the text in F
  --json                       one JSON object on stdout: tensors, total_bytes, bpw
  --recipe F                   begin with the plan in F; TYPE may then be left out
  --compat                     llama-quantize's bytes to the last one, its defects included
  --moments F                  second moments (surgeon imatrix --moments): the feedback encoder, same types and sizes
  --feedback-rounds N          rounds of better scales and codes in it (default 1)
  --shrink B                   of the moments towards their diagonal, 0 to 1 (default: chosen for each input)
  --save-moments F             also save the moments renumbered as the layers are
  --hide-imatrix               keep the imatrix's path and data set out of the metadata
  --save-imatrix F             also save the imatrix without the pruned layers and experts
  --prune-experts N|P%         leave out N (or P %) experts in every layer, the least salient in the imatrix
  --experts-by WHAT            choose them by saliency (default) or calls
  --heal F                     take refitted matrices from heal file F (surgeon heal), or heal on text F first
  --heal-tokens N              tokens to fit on for each column of ffn_down, where F is a text (default 30)
  --split-max-size N(M|G)      write shards of at most N megabytes or gigabytes of tensor data
  --i-know                     prune an architecture although not everything about it could be checked
  --overwrite                  replace an existing OUTPUT
  --resume                     continue a run that was cut off

TYPE (name or number):
"""

_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")
_FLOAT = re.compile(r"\s*[+-]?(inf(inity)?|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", re.IGNORECASE)
_MAX_KEY = 127
_MAX_TEXT = 127


class OptionError(SurgeonError):
    """A wrong command line; like llama-quantize's, its exit code is 1."""


@dataclass(frozen=True, slots=True)
class QuantizeCommand:
    """What one run shall do. input: None until the positional words are read; threads: 0 for all cores.

    prune_experts: how many in every layer (`25%`, `16`), chosen by `experts_by`; empty: those the plan names.
    """

    plan: Plan
    input: Path
    output: Path
    imatrix: str | None = None
    imatrix_sha256: str | None = None
    threads: int = 0
    max_buffer_bytes: int | None = None
    split_max_bytes: int = 0
    save_imatrix: Path | None = None
    moments: str | None = None
    moments_digest: str | None = None
    save_moments: Path | None = None
    dry_run: bool = False
    json: bool = False
    overwrite: bool = False
    resume: bool = False
    prune_experts: str = ""
    experts_by: str = "saliency"
    heal: str | None = None
    heal_tokens: float = 30.0


@dataclass(slots=True)
class _Words:
    """The options as they were read."""

    rules: list[TypeRule] = field(default_factory=list)
    pruned: set[int] = field(default_factory=set)
    overrides: list[str] = field(default_factory=list)
    keys: list[KVOverride] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)


FLAGS = frozenset(
    "--allow-requantize --leave-output-tensor --pure --keep-split --dry-run --json --compat --hide-imatrix --i-know "
    "--overwrite --resume".split()
)
_VALUES = frozenset(
    "--imatrix --output-tensor-type --token-embedding-type --max-buffer-size --recipe --save-imatrix "
    "--heal --heal-tokens --moments --feedback-rounds --shrink --save-moments "
    "--split-max-size --prune-experts --experts-by".split()
)


def usage() -> str:
    rows = [f"  {kind.number:>3}  {kind.name:<10} {kind.description}" for kind in FILE_TYPES.values() if kind.base]
    return USAGE + "\n".join([*rows, f"       {'COPY':<10} {FILE_TYPES['COPY'].description}"])


def parse_job(arguments: list[str]) -> QuantizeCommand:
    """The job that `arguments` (without the program's name) describe; raises SurgeonError with exit code 1."""
    try:
        return _parse_job(arguments)
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise OptionError(f"a number is too long: {str(error)[:80]}") from None


def _parse_job(arguments: list[str]) -> QuantizeCommand:
    words = read_words(arguments)
    recipe = load_recipe(words.values["--recipe"]) if "--recipe" in words.values else Recipe(Plan())
    source, output, kind, threads = _positional(words, recipe if "--recipe" in words.values else None)
    plan = replace(plan_of(words, recipe.plan), file_type=kind.name)
    if "--dry-run" not in words.flags and not plan.keep_split:
        _refuse_same_file(source, output)
    return QuantizeCommand(
        plan=plan,
        input=source,
        output=output,
        imatrix=words.values.get("--imatrix", recipe.imatrix),
        imatrix_sha256=None if "--imatrix" in words.values else recipe.imatrix_sha256,
        threads=threads if threads > 0 else recipe.threads,
        max_buffer_bytes=_buffer_bytes(words) or recipe.max_buffer_bytes,
        split_max_bytes=_split_bytes(words) or recipe.split_max_bytes,
        moments=words.values.get("--moments", recipe.moments),
        moments_digest=None if "--moments" in words.values else recipe.moments_digest,
        save_moments=Path(words.values["--save-moments"]) if "--save-moments" in words.values else None,
        save_imatrix=Path(words.values["--save-imatrix"]) if "--save-imatrix" in words.values else None,
        dry_run="--dry-run" in words.flags,
        json="--json" in words.flags,
        overwrite="--overwrite" in words.flags,
        resume="--resume" in words.flags,
        prune_experts=words.values.get("--prune-experts", ""),
        experts_by=words.values.get("--experts-by", "saliency"),
        heal=words.values.get("--heal"),
        heal_tokens=_heal_tokens(words),
    )


def read_words(arguments: list[str]) -> _Words:
    """Options up to the first word that does not start with `--`; the rest is positional."""
    words = _Words()
    special: dict[str, Callable[[str], object]] = {
        "--tensor-type": lambda text: words.rules.append(_rule(text)),
        "--tensor-type-file": lambda text: words.rules.extend(read_type_file(text)),
        "--prune-layers": lambda text: words.pruned.update(parse_layers(text)),
        "--override-kv": words.overrides.append,
        "--set": lambda text: words.keys.append(parse_setting(text)),
        "--delete-key": words.deleted.append,
        "--chat-template-file": lambda text: words.keys.append(KVOverride(CHAT_TEMPLATE, "str", _text_in(text))),
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


def plan_of(words: _Words, base: Plan) -> Plan:
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
        pruned=base.pruned | words.pruned,
        output_tensor_type=_type_option(values, "--output-tensor-type", base.output_tensor_type),
        token_embedding_type=_type_option(values, "--token-embedding-type", base.token_embedding_type),
        include_weights=tuple(words.include) or base.include_weights,
        exclude_weights=tuple(words.exclude) or base.exclude_weights,
        override_kv=(*base.override_kv, *(parse_override(text, compat=compat) for text in words.overrides)),
        pure=base.pure or "--pure" in flags,
        leave_output_tensor=base.leave_output_tensor or "--leave-output-tensor" in flags,
        allow_requantize=base.allow_requantize or "--allow-requantize" in flags,
        keep_split=base.keep_split or "--keep-split" in flags,
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
    if _FLOAT.fullmatch(text) is None or not 0 <= float(text) <= 1:
        raise OptionError(f"--shrink {text!r}: a number from 0 (the moments as they are) to 1 (their diagonal alone)")
    return float(text)


def _rounds(values: dict[str, str], base: int) -> int:
    text = values.get("--feedback-rounds")
    if text is None:
        return base
    if not text.isascii() or not text.isdigit():
        raise OptionError(f"--feedback-rounds {text!r}: a whole number from 0 on")
    return int(text)


def _type_option(values: dict[str, str], option: str, base: str | None) -> str | None:
    if option not in values:
        return base
    try:
        return tensor_type(values[option])
    except SurgeonError as error:
        raise OptionError(f"{option}: {error}") from None


def _rule(text: str) -> TypeRule:
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


def parse_layers(text: str) -> list[int]:
    """`26,29`: leading digits of each item count, as in llama-quantize."""
    items = text.split(",")
    layers = []
    for item in items[:-1] if items[-1] == "" else items:
        match = _INTEGER.match(item)
        if match is None or int(match[1]) < 0:
            raise OptionError(f"--prune-layers: {item!r} is not a layer number; use for instance --prune-layers 26,29")
        layers.append(int(match[1]))
    return layers


CHAT_TEMPLATE = "tokenizer.chat_template"


def parse_setting(text: str) -> KVOverride:
    """`KEY=VALUE`; what VALUE means is decided by the type the key has. Raises OptionError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise OptionError(f"--set {text[:60]!r}: write KEY=VALUE, for instance general.name=mine")
    return KVOverride(key, "auto", value)


def _text_in(path: str) -> str:
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
        return KVOverride(key, kind, _number(_INTEGER, int, text, value, compat))
    if kind == "float":
        return KVOverride(key, kind, _number(_FLOAT, float, text, value, compat))
    if kind == "bool":
        if value not in ("true", "false"):
            raise OptionError(f"--override-kv {text!r}: a bool is true or false")
        return KVOverride(key, kind, value == "true")
    return KVOverride(key, kind, value)


def _number(
    pattern: re.Pattern[str], convert: Callable[[str], int | float], text: str, value: str, compat: bool
) -> int | float:
    match = pattern.match(value)
    if match is None or (match.end() != len(value) and not compat):
        if compat:
            return 0
        raise OptionError(f"--override-kv {text!r}: {value!r} is not a number")
    return convert(match.group())


def _positional(words: _Words, recipe: Recipe | None) -> tuple[Path, Path, FileType, int]:
    """(input, output, type, threads); every mistake of llama-quantize's users gets its own sentence."""
    rest = list(words.positional)
    if len(rest) < (1 if recipe else 2):
        raise OptionError(
            "INPUT and TYPE are needed: surgeon quantize [options] INPUT.gguf [OUTPUT.gguf] TYPE [threads]"
        )
    source = rest.pop(0)
    keep_split = "--keep-split" in words.flags or (recipe is not None and recipe.plan.keep_split)
    kind = find_file_type(rest[0]) if rest else None
    if kind is not None:
        rest.pop(0)
        return Path(source), default_output(source, kind, keep_split), kind, _threads(rest, words)
    if not rest and recipe is not None:
        kind = FILE_TYPES[recipe.plan.file_type]
        return Path(source), default_output(source, kind, keep_split), kind, 0
    output = rest.pop(0)
    if output.startswith("--"):
        raise OptionError(f"{output} after INPUT: options come before INPUT")
    compat = "--compat" in words.flags
    if keep_split and (output.endswith(".gguf") or (compat and ".gguf" in output)):
        output = output[:-5]  # llama-quantize cuts them off wherever the ".gguf" stands
    kind = find_file_type(rest[0]) if rest else None
    if kind is None and recipe is not None:
        return Path(source), Path(output), FILE_TYPES[recipe.plan.file_type], _threads(rest, words)
    if kind is None:
        raise OptionError(
            _bad_type(rest[0]) if rest else f"TYPE is missing after OUTPUT {output!r}, for instance Q4_K_M"
        )
    return Path(source), Path(output), kind, _threads(rest[1:], words)


def _bad_type(text: str) -> str:
    import difflib

    near = difflib.get_close_matches(text.upper(), FILE_TYPES, n=3)
    return f"unknown TYPE {text!r}" + (
        f"; did you mean {' or '.join(near)}?" if near else "; see surgeon quantize --help"
    )


def default_output(source: str, kind: FileType, keep_split: bool) -> Path:
    """Beside the input, in the table's spelling of the type."""
    return Path(source).parent / f"ggml-model-{kind.name}{'' if keep_split else '.gguf'}"


def _threads(rest: list[str], words: _Words) -> int:
    """0 for all cores, as a number below 1 means too."""
    if not rest:
        return 0
    match = _INTEGER.match(rest[0])
    if match is None:
        hint = ": options come before INPUT" if rest[0].startswith("-") else ""
        raise OptionError(f"invalid thread count {rest[0]!r}{hint}")
    if len(rest) > 1 and "--compat" not in words.flags:
        raise OptionError(f"{rest[1]!r} after the number of threads: options come before INPUT")
    return max(int(match[1]), 0)


def _heal_tokens(words: _Words) -> float:
    text = words.values.get("--heal-tokens", "30")
    match = _FLOAT.fullmatch(text)
    if match is None or not 0 < float(text) < 1e6:
        raise OptionError(f"--heal-tokens {text!r}: a number above 0 is needed")
    return float(text)


def _buffer_bytes(words: _Words) -> int | None:
    text = words.values.get("--max-buffer-size")
    if text is None:
        return None
    match = _INTEGER.match(text)
    if match is None or int(match[1]) <= 0:
        raise OptionError(f"--max-buffer-size {text!r}: a number of MiB above 0 is needed")
    return int(match[1]) << 20


def _split_bytes(words: _Words) -> int:
    text = words.values.get("--split-max-size")
    if text is None:
        return 0
    if "--keep-split" in words.flags:
        raise OptionError("--split-max-size and --keep-split exclude each other; use one of them")
    return parse_split_size(text)


def parse_split_size(text: str) -> int:
    """`500M` or `2G` in bytes: decimal units, as llama-gguf-split has them."""
    match = re.fullmatch(r"([0-9]+)([MG])", text)
    if match is None or int(match[1]) == 0:
        raise OptionError(f"--split-max-size {text!r}: write a number and M or G, for instance 2G")
    return int(match[1]) * (10**6 if match[2] == "M" else 10**9)


def _refuse_same_file(source: Path, output: Path) -> None:
    try:
        same = output.samefile(source)
    except OSError:
        return  # one of them does not exist: the reader or the writer will say so
    if same:
        raise OptionError(f"{output}: input and output are the same file; name another output")
