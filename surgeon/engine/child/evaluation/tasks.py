"""HellaSwag, WinoGrande and multiple choice (ARC, MMLU, TruthfulQA), scored as llama-perplexity scores them.

An answer's score is the mean of log p over its tokens after what all answers of the task have in common; the best score
is the model's choice (the first of equals). `score` is llama-perplexity's figure; for WinoGrande, `score_corrected`
is the one without its slip (see `_item_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from surgeon.engine.child.evaluation import task_files
from surgeon.engine.child.evaluation.log_probabilities import negative_log_likelihood
from surgeon.engine.child.llama.model import Context, ContextSize, LlamaModel, Logits, Tokens, opened
from surgeon.engine.errors import EngineError
from surgeon.engine.protocol import Finished, Message, Started, Step, TaskJob

_LOGITS_BYTES = 512 << 20  # of one decode
_SEQUENCES = 64  # of one decode, unless a task has more answers
_WILSON_Z = 1.95996398454  # 95 %
_FEW_TOKENS = 3  # WinoGrande: with more than these after the common part, the filling itself is not scored


@dataclass(frozen=True)
class Item:
    """A task in tokens. common: tokens that all sequences share; spans: (first, end) of the scored tokens of each."""

    sequences: tuple[Tokens, ...]
    common: int
    spans: tuple[tuple[int, int], ...]
    gold: frozenset[int]

    @property
    def n_tokens(self) -> int:
        return self.common + sum(len(sequence) - self.common for sequence in self.sequences)


def measure(model: LlamaModel, job: TaskJob, threads: int) -> Iterator[Message]:
    """Started, a Step with `score` (per cent) after each task, Finished with score, its interval or error, n_tasks."""
    items = _items(model, job)
    yield Started(sum(item.n_tokens for item in items), len(items), job.n_ctx)
    correct = corrected = 0
    slip = job.task == "winogrande"
    with opened(model, _size(model, job, items), threads) as context:
        done = 0
        for pack in _packs(items, _tokens_at_once(model, job), context.size.n_seq):
            for item, logits in zip(pack, _logits(context, pack), strict=True):
                correct += int(np.argmax(_item_scores(item, logits, slip=slip))) in item.gold
                corrected += int(np.argmax(_item_scores(item, logits, slip=False))) in item.gold
                done += 1
                yield Step(done, len(items), {"score": 100 * correct / done})
    figures = _figures(job.task, correct, items)
    if slip:
        figures["score_corrected"] = 100 * corrected / len(items)
    yield Finished({"task": job.task, "n_tasks": len(items), **figures})


def _items(model: LlamaModel, job: TaskJob) -> list[Item]:
    if job.task == "hellaswag":
        return [_choice_item(model, task) for task in task_files.hellaswag(job.file, job.n_tasks)]
    if job.task == "winogrande":
        return [_blank_item(model, task) for task in task_files.winogrande(job.file, job.n_tasks)]
    return [_choice_item(model, task) for task in task_files.multiple_choice(job.file, job.n_tasks)]


def _choice_item(model: LlamaModel, task: task_files.Choice) -> Item:
    sequences = tuple(model.tokenize(f"{task.context} {answer}".encode()) for answer in task.answers)
    common = _common_prefix(sequences)
    spans = tuple((common, len(sequence)) for sequence in sequences)
    return Item(sequences, common, spans, task.gold)


def _blank_item(model: LlamaModel, task: task_files.Blank) -> Item:
    sequences = tuple(model.tokenize(f"{task.before}{choice}{task.after}".encode()) for choice in task.choices)
    common = _common_prefix(sequences)
    starts = [len(model.tokenize(f"{task.before}{choice}".encode())) for choice in task.choices]
    if not all(len(sequence) - common > _FEW_TOKENS for sequence in sequences):
        starts = [common, common]
    spans = []
    for start, sequence in zip(starts, sequences, strict=True):
        end = len(sequence) - (len(sequence) - start > 1)  # the last token is left out, unless it is the only one
        spans.append((start, end))
    return Item(sequences, common, tuple(spans), frozenset({task.answer - 1}))


def _common_prefix(sequences: tuple[Tokens, ...]) -> int:
    shortest = min(len(sequence) for sequence in sequences)
    stacked = np.stack([sequence[:shortest] for sequence in sequences])
    same = (stacked == stacked[0]).all(axis=0)
    common = shortest if same.all() else int(np.argmin(same))
    # At least one token must be shared, for it predicts the first one scored.
    if common == 0:
        raise EngineError("a task whose answers have no token in common: this vocabulary adds no BOS to the context")
    return common


def _tokens_at_once(model: LlamaModel, job: TaskJob) -> int:
    return max(1, min(job.n_batch, _LOGITS_BYTES // (4 * model.n_vocab)))


def _size(model: LlamaModel, job: TaskJob, items: list[Item]) -> ContextSize:
    largest = max(item.n_tokens for item in items)
    n_seq = max(_SEQUENCES, *(len(item.sequences) for item in items))
    n_batch = max(_tokens_at_once(model, job), largest, n_seq)  # llama.cpp aborts with less than one per sequence
    return ContextSize(max(n_batch, job.n_ctx), n_seq, n_batch, job.n_ubatch, unified=True)


def _packs(items: list[Item], n_tokens: int, n_seq: int) -> Iterator[list[Item]]:
    """Consecutive tasks that go through the model together."""
    pack: list[Item] = []
    tokens = sequences = 0
    for item in items:
        if pack and (tokens + item.n_tokens > n_tokens or sequences + len(item.sequences) > n_seq):
            yield pack
            pack, tokens, sequences = [], 0, 0
        pack.append(item)
        tokens += item.n_tokens
        sequences += len(item.sequences)
    if pack:
        yield pack


def _logits(context: Context, pack: list[Item]) -> Iterator[Logits]:
    """Each task's logits, beginning with the row of its last common token."""
    context.clear()
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[list[int]] = []
    outputs: list[bool] = []
    first = 0
    for item in pack:
        numbers = list(range(first, first + len(item.sequences)))
        first += len(numbers)
        tokens += item.sequences[0][: item.common].tolist()
        positions += range(item.common)
        owners += [numbers] * item.common
        outputs += [False] * (item.common - 1) + [True]
        for number, sequence in zip(numbers, item.sequences, strict=True):
            rest = len(sequence) - item.common
            tokens += sequence[item.common :].tolist()
            positions += range(item.common, len(sequence))
            owners += [[number]] * rest
            outputs += [True] * rest
    logits = context.decode(np.array(tokens, np.int32), np.array(positions, np.int32), owners, np.array(outputs))
    row = 0
    for item in pack:
        yield logits[row:]
        row += 1 + item.n_tokens - item.common


def _item_scores(item: Item, logits: Logits, *, slip: bool) -> list[float]:
    """The score of each answer from its task's logits: row 0 of the last common token, then each sequence's own rows.

    slip: as llama-perplexity's WinoGrande, which predicts the first own token of the second sequence from the last row
    of the first one (its source says so in a FIXME).
    """
    scores = []
    own = 1
    for index, (sequence, (start, end)) in enumerate(zip(item.sequences, item.spans, strict=True)):
        # The token at index i is predicted by the row of index i − 1.
        before = np.arange(start - 1, end - 1)
        rows = own + before - item.common
        if not (slip and index > 0):
            rows = np.where(before < item.common, 0, rows)
        targets = sequence[start:end]
        scores.append(-float(negative_log_likelihood(logits[rows], targets).mean()) if len(targets) else -math.inf)
        own += len(sequence) - item.common
    return scores


def _figures(task: str, correct: int, items: list[Item]) -> dict[str, float]:
    n = len(items)
    share = correct / n
    error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0
    figures = {"score": 100 * share, "n_correct": correct, "score_error": 100 * error}
    if task == "hellaswag":
        low, high = wilson_interval(correct, n)
        return {**figures, "score_low": 100 * low, "score_high": 100 * high}
    if task == "multiple-choice":
        chance = n / sum(len(item.sequences) for item in items)
        figures["random_chance"] = 100 * chance
    return figures


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, after Wilson (1927)."""
    share, z = correct / n, _WILSON_Z
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - half) / scale, (centre + half) / scale
