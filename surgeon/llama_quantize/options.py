"""llama-quantize's command line, word for word, and our own options beside it.

    [options] INPUT.gguf [OUTPUT.gguf] TYPE [threads]

Options come before INPUT and take their argument as the next word (there is no `--option=value`). The second word is
first tried as a TYPE; when it is one, the output is called `ggml-model-<TYPE>.gguf` beside the input. With `--recipe`
TYPE may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.llama_quantize.arguments import FLOAT, INTEGER, OptionError, leading_number, parse_split_size
from surgeon.llama_quantize.usage import SYNTAX
from surgeon.llama_quantize.words import Words, plan_of, read_words
from surgeon.plan.file_types import FILE_TYPES, FileType, find_file_type
from surgeon.plan.plan import Plan
from surgeon.plan.recipe import Recipe, load_recipe


@dataclass(frozen=True, slots=True)
class QuantizeCommand:
    """What one run shall do. threads: 0 for all cores.

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
    scheduler: str | None = None


def parse_job(arguments: list[str]) -> QuantizeCommand:
    """The job that `arguments` (without the program's name) describe; raises SurgeonError with exit code 1."""
    try:
        return _parse_job(arguments)
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise OptionError(f"a number is too long: {str(error)[:80]}") from None


def _parse_job(arguments: list[str]) -> QuantizeCommand:
    words = read_words(arguments)
    recipe = load_recipe(words.values["--recipe"]) if "--recipe" in words.values else Recipe(Plan())
    settings = recipe.settings
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
        threads=threads if threads > 0 else settings.threads,
        max_buffer_bytes=buffer_bytes(words) or settings.max_buffer_bytes,
        split_max_bytes=split_bytes(words) or (0 if "--keep-split" in words.flags else settings.split_max_bytes),
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
        scheduler=words.values.get("--scheduler"),
        heal_tokens=_heal_tokens(words),
    )


def _positional(words: Words, recipe: Recipe | None) -> tuple[Path, Path, FileType, int]:
    """(input, output, type, threads); every mistake of llama-quantize's users gets its own sentence."""
    rest = list(words.positional)
    if len(rest) < (1 if recipe else 2):
        raise OptionError(f"INPUT and TYPE are needed: {SYNTAX}")
    source = rest.pop(0)
    keep_split = plan_of(words, recipe.plan if recipe is not None else Plan()).keep_split
    kind = find_file_type(rest[0]) if rest else None
    if kind is not None:
        rest.pop(0)
        return Path(source), _default_output(source, kind, keep_split), kind, _threads(rest, words)
    if not rest and recipe is not None:
        kind = FILE_TYPES[recipe.plan.file_type]
        return Path(source), _default_output(source, kind, keep_split), kind, 0
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


def _default_output(source: str, kind: FileType, keep_split: bool) -> Path:
    """Beside the input, in the table's spelling of the type."""
    return Path(source).parent / f"ggml-model-{kind.name}{'' if keep_split else '.gguf'}"


def _threads(rest: list[str], words: Words) -> int:
    """0 for all cores, as a number below 1 means too."""
    if not rest:
        return 0
    match = INTEGER.match(rest[0])
    if match is None:
        hint = ": options come before INPUT" if rest[0].startswith("-") else ""
        raise OptionError(f"invalid thread count {rest[0]!r}{hint}")
    if len(rest) > 1 and "--compat" not in words.flags:
        raise OptionError(f"{rest[1]!r} after the number of threads: options come before INPUT")
    return max(leading_number(match), 0)


def _heal_tokens(words: Words) -> float:
    text = words.values.get("--heal-tokens", "30")
    match = FLOAT.fullmatch(text)
    if match is None or not 0 < float(text) < 1e6:
        raise OptionError(f"--heal-tokens {text!r}: a number above 0 is needed")
    return float(text)


def buffer_bytes(words: Words) -> int | None:
    """What `--max-buffer-size` says; None without it. Raises OptionError."""
    text = words.values.get("--max-buffer-size")
    if text is None:
        return None
    match = INTEGER.match(text)
    if match is None or leading_number(match) <= 0:
        raise OptionError(f"--max-buffer-size {text[:60]!r}: a number of MiB above 0 is needed")
    return leading_number(match) << 20


def split_bytes(words: Words) -> int:
    """What `--split-max-size` says; 0 without it. Raises OptionError."""
    text = words.values.get("--split-max-size")
    if text is None:
        return 0
    if "--keep-split" in words.flags:
        raise OptionError("--split-max-size and --keep-split exclude each other; use one of them")
    return parse_split_size(text)


def _refuse_same_file(source: Path, output: Path) -> None:
    try:
        same = output.samefile(source)
    except OSError:
        return  # one of them does not exist: the reader or the writer will say so
    if same:
        raise OptionError(f"{output}: input and output are the same file; name another output")
