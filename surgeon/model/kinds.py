"""What kind of GGUF a file is, and which of them have a perplexity."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from surgeon.errors import SurgeonError
from surgeon.gguf.file import GGUFFile, open_gguf
from surgeon.gguf.values import ValueType
from surgeon.model.model import Model

ENCODERS = frozenset(
    """
    bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert gemma-embedding
    gemma-embedding2 llama-embed t5encoder
    """.split()
)

_EMBEDDINGS = "`surgeon perplexity --embedding ORIGINAL` compares its embeddings"
# kind -> what it is, and what to do with it instead
_WITHOUT_TEXT = {
    "imatrix": ("an importance matrix, not a model", "give it with --imatrix; `surgeon stats` shows it"),
    "adapter": ("a LoRA adapter, not a model", "merge it into its model with llama-export-lora and take that"),
    "mmproj": ("the vision or audio part of a model (mmproj)", "take the model it belongs to"),
    "controlvector": ("a control vector, not a model", "take the model it was made for"),
    "vocabulary": ("a vocabulary without tensors", "take the model itself"),
    "encoder": ("an encoder, which predicts no next token", f"it has no perplexity; {_EMBEDDINGS}"),
    "both ways": (
        "a model that reads both ways, not from left to right",
        f"it has no perplexity; {_EMBEDDINGS}",
    ),
    "encoder-decoder": ("an encoder-decoder model", "only models that go on with a text can be run here"),
    "draft": ("a draft for another model's predictions", "it runs only together with that model"),
}

# What nobody loads as a model of its own.
NO_MODELS = ("adapter", "mmproj", "controlvector", "vocabulary")
NAMES = {name: what for name, (what, _) in _WITHOUT_TEXT.items()}


def text(file: GGUFFile, key: str) -> str:
    """The string of a key, '' where there is none."""
    value = file.kv.get(key)
    return str(value.decode()) if value is not None and value.type is ValueType.STRING else ""


def kind(file: GGUFFile) -> str:
    """`model`, or what else the file is: a key of the table above."""
    stated, architecture = text(file, "general.type"), text(file, "general.architecture")
    if stated in ("imatrix", "adapter", "mmproj"):
        return stated
    if architecture in ("clip", "controlvector"):
        return {"clip": "mmproj"}.get(architecture, architecture)
    if "adapter.type" in file.kv or any(info.name.endswith((".lora_a", ".lora_b")) for info in file.tensors[:4]):
        return "adapter"
    if not file.tensors and "tokenizer.ggml.tokens" in file.kv:
        return "vocabulary"
    if architecture in ENCODERS:
        return "encoder"
    if architecture == "t5":
        return "encoder-decoder"
    if architecture in ("eagle3", "dflash", "gemma4-assistant"):
        return "draft"
    causal = file.kv.get(f"{architecture}.attention.causal")
    return "both ways" if causal is not None and causal.type is ValueType.BOOL and not causal.decode() else "model"


def refuse_imatrix(model: Model) -> None:
    """Raises SurgeonError where the file is an importance matrix: there is nothing in it to operate on."""
    if kind(model.file) == "imatrix":
        what, remedy = _WITHOUT_TEXT["imatrix"]
        raise SurgeonError(f"{model.file.path}: {what}; {remedy}")


def refuse_without_text(path: str | Path) -> None:
    """Raises SurgeonError, naming what the file is, where it is not a model that continues a text."""
    _refuse(path, _WITHOUT_TEXT.keys())


def refuse_without_embeddings(path: str | Path) -> None:
    """Raises SurgeonError, naming what the file is, where a text has no embedding by it."""
    _refuse(path, _WITHOUT_TEXT.keys() - {"encoder", "both ways"})


def _refuse(path: str | Path, unfit: Container[str]) -> None:
    with open_gguf(path) as file:
        found = kind(file)
        architecture = text(file, "general.architecture")
    if found in unfit:
        what, remedy = _WITHOUT_TEXT[found]
        name = f" ({architecture})" if architecture and found in ("encoder", "both ways", "encoder-decoder") else ""
        raise SurgeonError(f"{path}: {what}{name}; {remedy}")
