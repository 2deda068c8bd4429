"""The plan: what the user wants done to a model. Immutable, so that undo is a list of plans."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TypeRule:
    """`--tensor-type PATTERN=TYPE`: ECMAScript regex searched in tensor names; the first matching rule wins."""

    pattern: str
    type: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.type.lower()}"


@dataclass(frozen=True, slots=True)
class KVOverride:
    """`--override-kv KEY=TYPE:VALUE`; kind is int, float, bool or str."""

    key: str
    kind: str
    value: int | float | bool | str


@dataclass(frozen=True)
class Plan:
    """Everything that decides the output, apart from the model and the importance matrix.

    file_type: a TYPE of llama-quantize in its table's spelling (`Q4_K_M`); types: exact tensor name (of the input) ->
    tensor type, set by hand on the screen, before any rule; pruned: layer numbers of the input.
    compat: reproduce llama-quantize's defects too.
    """

    file_type: str = "COPY"
    rules: tuple[TypeRule, ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    pruned: frozenset[int] = frozenset()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    include_weights: tuple[str, ...] = ()
    exclude_weights: tuple[str, ...] = ()
    override_kv: tuple[KVOverride, ...] = field(default=())
    pure: bool = False
    leave_output_tensor: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    hide_imatrix: bool = False
    compat: bool = False
