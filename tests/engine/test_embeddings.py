"""The cosine of embeddings: against a model whose embeddings are known in closed form, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from engine_helpers import TEXT
from toy_bert import CONTEXT, LAYERS, TOKENS, WIDTH, WORDS, toy_bert

from surgeon.cli import run as command_line
from surgeon.errors import SurgeonError, UsageError
from surgeon.measure.embeddings import cosine_figures
from surgeon.trials.journal import Journal

EPSILON = 1e-5


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Twelve lines, some longer than the model's context, with blank ones between."""
    rng = random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice((1, 5, 20, 50)))) for _ in range(12)]
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(texts) + "\n")
    return path


def silent(table: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Tensors that make the blocks add nothing, and other token embeddings if given."""
    changes = {} if table is None else {"token_embd.weight": table}
    for layer in range(LAYERS):
        changes[f"blk.{layer}.attn_output.weight"] = np.zeros((WIDTH, WIDTH), np.float32)
        changes[f"blk.{layer}.ffn_down.weight"] = np.zeros((WIDTH, 2 * WIDTH), np.float32)
    return changes


def embedding(line: str, table: np.ndarray, positions: np.ndarray, types: np.ndarray) -> np.ndarray:
    """By hand: the mean over tokens of the layer norms of what is looked up."""
    numbers = [2, *(TOKENS.index(f"▁{word}") for word in line.split()), 3]
    if len(numbers) > CONTEXT:
        numbers = [*numbers[: CONTEXT - 1], 3]
    x = table[numbers] + positions[: len(numbers)] + types[0]
    for _ in range(1 + 2 * LAYERS):
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON)
    return x.mean(axis=0)


def test_the_cosine_is_that_of_embeddings_computed_by_hand(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from surgeon.gguf.file import open_gguf

    original = toy_bert(tmp_path / "a.gguf", **silent())
    with open_gguf(original) as file:
        infos = {info.name: info for info in file.tensors}
        names = ("token_embd.weight", "position_embd.weight", "token_types.weight")
        table, positions, types = (file.data(infos[n]).view("<f4").reshape(-1, WIDTH).astype(np.float64) for n in names)
    other = table + 0.1 * np.random.default_rng(1).standard_normal(table.shape)
    changed = toy_bert(tmp_path / "b.gguf", **silent(other.astype(np.float32)))
    words = ["perplexity", "-m", str(changed), "--embedding", str(original), "-f", str(lines), "-t", "1"]
    assert command_line([*words, "--json", "--journal", str(original)]) == 0
    found = json.loads(capsys.readouterr().out)
    texts = [line for line in lines.read_text().splitlines() if line]
    rows = [np.array([embedding(line, one, positions, types) for line in texts]) for one in (table, other)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*rows, strict=True)]
    assert found["n_chunks"] == len(texts) == 12
    assert found["n_ctx"] == CONTEXT
    assert found["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert found["min_cosine"] == pytest.approx(min(cosines), abs=2e-4)
    assert found["mean_cosine_error"] == pytest.approx(np.std(cosines, ddof=1) / np.sqrt(12), rel=0.02)
    (trial,) = Journal.of_model(original).trials()
    assert trial.measured.figures["mean_cosine"] == found["mean_cosine"]
    assert trial.measured.conditions["n_chunks"] == 12
    assert command_line(["journal", str(original)]) == 0
    assert f"{found['mean_cosine']:.6f} ±" in capsys.readouterr().out
    assert command_line([*words, "--chunks", "5"]) == 0
    assert "over 5 lines, the lowest 0.9" in capsys.readouterr().out


def test_a_model_is_as_near_to_itself_as_can_be_and_causal_ones_work_too(
    demo_model: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (toy_bert(tmp_path / "bert.gguf", pooling=None), demo_model):
        words = ["perplexity", "-m", str(model), "--embedding", str(model), "-f", str(lines), "-t", "1", "--json"]
        assert command_line([*words, "--chunks", "3"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["min_cosine"] == pytest.approx(1, abs=1e-6)
        assert found["n_chunks"] == 3


def test_what_cannot_be_compared_is_refused(demo_model: Path, lines: Path, tmp_path: Path) -> None:
    model = str(toy_bert(tmp_path / "bert.gguf"))
    reranker = str(toy_bert(tmp_path / "rank.gguf", pooling=4))
    broken = toy_bert(tmp_path / "nan.gguf", **{"blk.0.ffn_up.bias": np.full(2 * WIDTH, np.nan, np.float32)})
    short = tmp_path / "short.txt"
    short.write_text("word1\n\n")

    def refused(*words: str, why: str, kind: type[Exception] = SurgeonError) -> None:
        with pytest.raises(kind, match=why):
            command_line(["perplexity", "-t", "1", "--chunks", "2", *words])

    refused("-m", model, "-f", str(lines), why="an encoder.*`surgeon perplexity --embedding ORIGINAL`")
    refused("-m", reranker, "--embedding", model, "-f", str(lines), why=r"rank.gguf: is a reranker")
    refused("-m", str(demo_model), "--embedding", model, "-f", str(lines), why="have 256 values, those of .* 64")
    refused("-m", str(broken), "--embedding", model, "-f", str(lines), why=r"nan.gguf: an embedding is NaN or zero")
    refused("-m", model, "--embedding", model, "-f", str(short), why="has 1 lines of text")
    refused("-m", model, "--embedding", model, why="-f TEXT is missing", kind=UsageError)
    refused("-m", model, "--embedding", model, "-f", str(TEXT), "--hellaswag", why="measured alone", kind=UsageError)


def test_cosine_figures_of_known_vectors() -> None:
    a = np.array([[1, 0], [1, 0], [3, 4]], np.float32)
    b = np.array([[2, 0], [0, 5], [3, 4]], np.float32)
    found = cosine_figures(a, b)
    assert found["mean_cosine"] == pytest.approx(2 / 3)
    assert found["min_cosine"] == 0
    assert found["mean_cosine_error"] == pytest.approx(np.std([1, 0, 1], ddof=1) / np.sqrt(3))
