"""The task files that llama-perplexity reads: HellaSwag text, WinoGrande CSV, the binary of multiple choice."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from surgeon.engine.child.evaluation.mt19937 import sampled, shuffled
from surgeon.engine.errors import EngineError

_MOST_ANSWERS = 100


@dataclass(frozen=True)
class Choice:
    """A context and the continuations to choose from; gold: which are right."""

    context: str
    answers: tuple[str, ...]
    gold: frozenset[int]


@dataclass(frozen=True)
class Blank:
    """A sentence around a blank, and its two fillings; answer: 1 or 2."""

    before: str
    after: str
    choices: tuple[str, str]
    answer: int


def hellaswag(path: str, count: int) -> list[Choice]:
    """Six lines per task: "activity: context", the number of the right ending, four endings."""
    lines = Path(path).read_text("utf-8", "replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    total = len(lines) // 6
    if total == 0 or len(lines) % 6:
        raise EngineError(f"{path}: {len(lines)} lines; a HellaSwag file has six lines per task")
    return [_hellaswag_task(path, lines, 6 * index) for index in shuffled(count if count > 0 else total, total)]


def _hellaswag_task(path: str, lines: list[str], start: int) -> Choice:
    context, gold, *endings = lines[start : start + 6]
    if gold.strip() not in {"0", "1", "2", "3"}:
        raise EngineError(f"{path}: line {start + 2} is {gold[:40]!r}, not the number of the right ending (0 to 3)")
    return Choice(context, tuple(endings), frozenset({int(gold)}))


def winogrande(path: str, count: int) -> list[Blank]:
    """Lines of `index,sentence,choice1,choice2,answer`; the sentence may be quoted and has one blank, `_`.

    llama-perplexity takes the file's last newline away, then drops a last line without one; so do we, or other
    tasks would be drawn.
    """
    lines = Path(path).read_text("utf-8", "replace").removesuffix("\n").split("\n")[:-1]
    tasks = [task for line in lines if (task := _blank(line)) is not None]
    if not tasks:
        raise EngineError(f"{path}: no line is a WinoGrande task (index,sentence,choice1,choice2,answer)")
    return [tasks[index] for index in sampled(count, len(tasks))]


def _blank(line: str) -> Blank | None:
    _, _, rest = line.partition(",")
    if rest.startswith('"'):
        sentence, _, rest = rest[1:].partition('",')
    else:
        sentence, _, rest = rest.partition(",")
    fields = rest.rstrip("\r").split(",")
    before, blank, after = sentence.partition("_")
    if len(fields) != 3 or not blank or fields[2] not in {"1", "2"}:
        return None
    return Blank(before, after, (fields[0], fields[1]), int(fields[2]))


def multiple_choice(path: str, count: int) -> list[Choice]:
    """uint32 tasks, uint32 position of each; a task: question, answers with one right, a second set (not used)."""
    data = Path(path).read_bytes()
    try:
        (total,) = struct.unpack_from("<I", data)
        if total == 0:
            raise ValueError("it holds no task")
        positions = struct.unpack_from(f"<{total}I", data, 4)
        return [_choice(data, positions[index]) for index in sampled(count, total)]
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise EngineError(f"{path}: not a multiple-choice file of llama-perplexity, or cut off ({error})") from error


def _choice(data: bytes, position: int) -> Choice:
    question, at = _string(data, position)
    (n,) = struct.unpack_from("<I", data, at)
    if not 0 < n <= _MOST_ANSWERS:
        raise ValueError(f"{n} answers")
    at += 4
    answers = []
    for _ in range(n):
        answer, at = _string(data, at)
        answers.append(answer)
    labels = struct.unpack_from(f"<{n}i", data, at)
    return Choice(question, tuple(answers), frozenset(i for i, label in enumerate(labels) if label == 1))


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, at)
    if at + 4 + length > len(data):
        raise ValueError(f"a text of {length} bytes at {at}")
    return data[at + 4 : at + 4 + length].decode("utf-8"), at + 4 + length
