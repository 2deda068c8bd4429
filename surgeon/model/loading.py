"""What llama.cpp's loader refuses in a model's keys and tensors; layer_tensors.py has what each layer must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from surgeon.gguf.values import Value, ValueType
from surgeon.model.layer_tensors import FAMILIES, Shapes, expected
from surgeon.model.model import Model

KeyValues = Mapping[str, Value]
_U32, _F32, _STRING, _BOOL = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING, ValueType.BOOL

# `<architecture>.<key>`: the type the loader asks for; a key of another type ends the loading.
_TYPES = {
    **dict.fromkeys(
        """
        context_length embedding_length block_count feed_forward_length attention.head_count attention.head_count_kv
        attention.key_length attention.value_length rope.dimension_count expert_count expert_used_count vocab_size
        expert_feed_forward_length nextn_predict_layers leading_dense_block_count attention.sliding_window
        """.split(),
        _U32,
    ),
    **dict.fromkeys("attention.layer_norm_rms_epsilon attention.layer_norm_epsilon rope.freq_base".split(), _F32),
    "attention.causal": _BOOL,
}
_REQUIRED = ("context_length", "embedding_length", "block_count")
_TOKEN_IDS = ("bos", "eos", "unknown", "padding", "separator", "eot")


_ROPE = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})


def key_refusals(kv: KeyValues, layers: frozenset[int], vocabulary: int | None) -> list[str]:
    """Why the keys alone would end the loading; layers: that have tensors; vocabulary: rows of the token embedding."""
    architecture = kv.get("general.architecture")
    if architecture is None or architecture.type is not _STRING:
        return ["general.architecture is missing; llama.cpp needs it to load the model"]
    prefix = str(architecture.decode())
    found = list(_type_refusals(kv, prefix))
    if prefix in FAMILIES:
        wanted = (*_REQUIRED, "attention.head_count", FAMILIES[prefix].epsilon)
        found += [f"the key {prefix}.{key} is missing" for key in wanted if f"{prefix}.{key}" not in kv]
    refusal = block_count_refusal(kv, layers)
    return [*found, *([refusal] if refusal else []), *_vocabulary_refusals(kv, vocabulary)]


def block_count_refusal(kv: KeyValues, layers: frozenset[int]) -> str:
    """What is wrong with the number of layers, '' where it is that of the tensors' or cannot be compared."""
    architecture = kv.get("general.architecture")
    if architecture is None or architecture.type is not _STRING:
        return ""
    count = number(kv, f"{architecture.decode()}.block_count")
    if count is None or not layers:
        return ""
    if max(layers) >= count:
        return f"block_count is {count}, but there are tensors of layer {max(layers)}"
    missing = min(set(range(min(count, 1 << 16))) - layers, default=None)
    return f"block_count is {count}, but layer {missing} has no tensors" if missing is not None else ""


def _type_refusals(kv: KeyValues, prefix: str) -> Iterator[str]:
    for key, type_ in _TYPES.items():
        value = kv.get(f"{prefix}.{key}")
        if value is None or value.type is type_ or value.type is ValueType.ARRAY:
            continue
        yield f"{prefix}.{key} is {value.type.name.lower()}; llama.cpp reads it as {type_.name.lower()} only"


def _vocabulary_refusals(kv: KeyValues, vocabulary: int | None) -> Iterator[str]:
    tokens = kv.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    if tokens.element_type is not _STRING:
        yield "tokenizer.ggml.tokens is not a list of texts"
        return
    if "tokenizer.ggml.model" not in kv:
        yield "the key tokenizer.ggml.model is missing"
    for key in ("scores", "token_type"):
        value = kv.get(f"tokenizer.ggml.{key}")
        if value is not None and (value.element_type is None or value.count < tokens.count):
            yield f"tokenizer.ggml.{key} has {value.count} entries for {tokens.count} tokens"
    if vocabulary is not None and vocabulary != tokens.count:
        yield f"token_embd.weight has {vocabulary} rows for a vocabulary of {tokens.count} tokens"


def special_token_notes(kv: KeyValues) -> Iterator[str]:
    """Special tokens that are none: llama.cpp goes on without them."""
    tokens = kv.get("tokenizer.ggml.tokens")
    for name in _TOKEN_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        place = number(kv, key)
        if tokens is not None and place is not None and place >= tokens.count:
            yield f"{key} is {place}, but there are {tokens.count} tokens; llama.cpp ignores it"


def number(kv: KeyValues, key: str) -> int | None:
    """A whole number; the first entry where there is one for each layer."""
    value = kv.get(key)
    found = None if value is None else value.small()
    if isinstance(found, list):
        found = found[0] if len(set(map(str, found))) == 1 else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def vocabulary_rows(model: Model) -> int | None:
    """Rows of the token embedding."""
    for tensor in model.others:
        if tensor.name == "token_embd.weight" and len(tensor.ne) == 2:
            return tensor.ne[1]
    return None


def tensor_refusals(model: Model) -> list[str]:
    """Tensors that the loader misses, does not know or finds in another shape; none for unlisted architectures."""
    family = FAMILIES.get(model.architecture)
    if family is None:
        return []

    def integer(key: str) -> int:
        return number(model.file.kv, f"{model.architecture}.{key}") or 0

    embedding = integer("embedding_length")
    there = {tensor.name: tensor.ne for tensor in model.tensors}
    known = {"token_embd.weight", "output_norm.weight", "output.weight", *(f"{name}.weight" for name in _ROPE)}
    wanted: dict[str, tuple[int, ...]] = {"output_norm.weight": (embedding,)}
    for layer in model.layers:
        found = expected(family, layer, integer)
        if found is None:
            return []
        prefix = f"blk.{layer.index}."
        wanted |= {f"{prefix}{_full(short)}": ne for short, ne in found.needed.items()}
        known |= {f"{prefix}{_full(short)}" for short in (*found.other, *_ROPE)}
    if "token_embd.weight" not in there:
        wanted["token_embd.weight"] = (embedding,)
    return [*_missing_or_misshapen(wanted, there), *_left_over(model.architecture, there, known | wanted.keys())]


def _missing_or_misshapen(wanted: Shapes, there: Shapes) -> Iterator[str]:
    yield from (f"tensor {name} is missing" for name in wanted if name not in there)
    for name, ne in wanted.items():
        if name in there and _trimmed(there[name]) != _trimmed(ne):
            yield f"tensor {name} is {_shape(there[name])}; llama.cpp expects {_shape(ne)}"


def _left_over(architecture: str, there: Shapes, known: Set[str]) -> Iterator[str]:
    for name in there:
        if name not in known and not name.endswith((".scale", ".input_scale")):
            yield f"tensor {name} is not known in {architecture}: llama.cpp refuses a file with tensors left over"


def _full(short: str) -> str:
    return short if short.endswith(".bias") else f"{short}.weight"


def _trimmed(ne: tuple[int, ...]) -> tuple[int, ...]:
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def _shape(ne: tuple[int, ...]) -> str:
    return " × ".join(map(str, ne))
