"""The anatomy of every architecture llama.cpp loads: what in a file speaks of layers by number.

The names, defaults and counts are those of llama.cpp's loader (read at build 11549, October 2026). An architecture that
is only listed in PLAIN has nothing but what COMMON and the per-layer arrays below say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from surgeon.anatomy.derived import (
    AT_LEAST_64,
    BAICHUAN_POSITIONS,
    DEEPSEEK2_GATING,
    DEEPSEEK2_Q_RANK,
    EXAONE4_WINDOW,
    GEMMA2_SCALE,
    GEMMA3_SCALE,
    MINICPM3_SCALE,
    MINICPM_SCALE,
    MINIMAX_SLOPES,
    Derived,
)
from surgeon.anatomy.roles import Leading, Listed, Metadata, Periodic, Role, Trailing

# As `model.layer_keys.PER_LAYER`, without the architecture's name in front.
PER_LAYER_ABSOLUTE = frozenset("xielu.alpha_p xielu.alpha_n xielu.beta xielu.eps".split())
# Arrays whose values are layer numbers: renumbered.
LAYER_NUMBERS = frozenset(["ple.layers"])
# Arrays that may happen to be as long as the model is deep and have nothing to do with layers.
NOT_PER_LAYER = frozenset(
    """
    rope.dimension_sections target_layers ple.layer_multipliers ple.head_offsets ple.head_vocab_sizes
    adapters.token_ids_activate adapters.token_ids_substitute classifier.output_labels
    """.split()
)
# Keys with `layer` or `block` in their name that do not speak of layer numbers.
HARMLESS = frozenset(
    "block_count attention.layer_norm_epsilon attention.layer_norm_rms_epsilon embedding_length_per_layer_input".split()
)

LEADING_DENSE = Leading("dense", "moe", "leading_dense_block_count", shapes=True)
PREDICTION = Trailing("mtp", "nextn_predict_layers", inside_trunk=False)
COMMON: tuple[Role, ...] = (LEADING_DENSE, PREDICTION)


@dataclass(frozen=True, slots=True)
class Sliced:
    """A tensor outside the blocks with the layers side by side in dimension `dimension` of ne."""

    name: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Assumed:
    """A per-layer array that llama.cpp fills in by layer number when the file has none; pruning writes it out."""

    key: str
    entries: Callable[[Metadata], list[bool] | None]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """names: the architectures it holds for.

    shared_kv: the last layers reuse the keys and values of the two layers before them; essential_first: why layer 0
    cannot go; refusal: why no layer can go.
    """

    names: str
    roles: tuple[Role, ...] = ()
    sliced: tuple[Sliced, ...] = ()
    derived: tuple[Derived, ...] = ()
    assumed: tuple[Assumed, ...] = ()
    shared_kv: Leading | Trailing | None = None
    essential_first: str = ""
    refusal: str = ""


def _window(period: int, first: int | None = None, *, window: int = 1) -> Periodic:
    """Sliding-window attention. window: what llama.cpp assumes when `attention.sliding_window` is absent (0: none)."""
    pattern = "attention.sliding_window_pattern"
    return Periodic("global", "local", period, first, pattern, pattern, "attention.sliding_window", window)


def _interval(default: int) -> Periodic:
    """Linear attention with full attention in between."""
    return Periodic(
        "attention",
        "recurrent",
        default,
        period_key="full_attention_interval",
        array_key="attention.recurrent_layers",
        shapes=True,
    )


def _no_rope(first: int | None = None, *, active_default: int | None = None) -> Periodic:
    """Every fourth layer without position encoding; llama.cpp reads no array for it."""
    key = "" if active_default is None else "attention.sliding_window"
    return Periodic("nope", "", 4, first, active_key=key, active_default=active_default or 0)


def _glm_5_2_indexers(metadata: Metadata) -> list[bool] | None:
    """GLM-5.2 (a context of 2^20): layers 0 and 1 and then every fourth have an indexer of their own."""
    if metadata.integer("context_length") < 1 << 20:
        return None
    return [i < 2 or i % 4 == 2 for i in range(metadata.trunk)]


LISTED_WINDOW = Listed("attention.sliding_window_pattern", zero="global", nonzero="local", shapes=False)
RECURRENT_WITHOUT_KV = Listed("attention.head_count_kv", zero="recurrent", nonzero="attention")
INDEXERS = Listed("attention.indexer.types", zero="", nonzero="indexer")
MOE_STEP = Periodic("moe", "dense", 0, period_key="interleave_moe_layer_step", shapes=True)
MOE_SECOND = Periodic("moe", "dense", 0, first=1, period_key="moe_every_n_layers", shapes=True)
HALVED = Periodic("halved", "", 0, period_key="rescale_every_n_layers")
PER_LAYER_INPUT = (Sliced("per_layer_token_embd.weight", 0), Sliced("per_layer_model_proj.weight", 1))
SPARSE = Leading("sparse", "", count=10)
OWN_KV = Leading("", "shared KV", count=20)
SHARED_KV = Trailing("shared KV", "attention.shared_kv_layers", inside_trunk=False, shapes=False)
DEEPSTACK = Leading("vision", "", "n_deepstack_layers", adjust=False)
DECISION = Trailing("decision", "decision.block_count")
FIRST_VALUES = "its values are mixed into those of every later layer, and its tensors have other sizes"

ANATOMIES: tuple[Anatomy, ...] = (
    # Sliding windows. A period can be frozen as an explicit array: the loader asks for one first.
    Anatomy("gemma2", (_window(2),), derived=(GEMMA2_SCALE,)),
    Anatomy("gemma3", (_window(6, window=0),), derived=(GEMMA3_SCALE,)),
    Anatomy("gemma-embedding", (_window(6),)),
    Anatomy("gemma-embedding2", (_window(6),), PER_LAYER_INPUT),
    Anatomy("gemma3n", (_window(5), SPARSE, OWN_KV), PER_LAYER_INPUT, shared_kv=OWN_KV),
    Anatomy("gemma4", (LISTED_WINDOW, SHARED_KV), PER_LAYER_INPUT, shared_kv=SHARED_KV),
    Anatomy("gpt-oss", (_window(2),)),
    Anatomy("cohere2", (_window(4),)),
    Anatomy("cohere2moe laguna", (_window(4, 0, window=0),)),
    Anatomy("olmo2 mellum", (_window(4, window=0),)),
    Anatomy("exaone4", (_window(4, window=0),), derived=(EXAONE4_WINDOW,)),
    Anatomy("exaone-moe muse-glimmer", (_window(4),)),
    Anatomy("plamo3", (_window(8, window=0),)),
    Anatomy("modern-bert", (_window(3, 0, window=0), DECISION)),
    Anatomy("llama4", (_window(4), _no_rope(active_default=1), MOE_STEP)),
    Anatomy("smallthinker", (_window(4, 0, window=0), _no_rope(0, active_default=0))),
    Anatomy("afmoe", (_window(4, window=0), _no_rope())),
    Anatomy("mimo2 step35 maple spark2_5", (LISTED_WINDOW,)),
    Anatomy("dots3note", (LISTED_WINDOW, INDEXERS)),
    Anatomy("granite_swa", (LISTED_WINDOW, Listed("attention.rope_pattern", zero="nope", shapes=False))),
    # Position encoding, experts and rescaling by layer number, with nothing to freeze them by.
    Anatomy("smollm3", (_no_rope(),)),
    Anatomy("ernie4_5-moe", (MOE_STEP,)),
    Anatomy("nomic-bert-moe bert nomic-bert", (MOE_SECOND,)),
    Anatomy("rwkv6 rwkv6qwen2", (HALVED,)),
    Anatomy("kimi-k3", (RECURRENT_WITHOUT_KV, Periodic("banked", "", 0, first=0, period_key="attn_res.block_size"))),
    # Recurrent layers among those with attention.
    Anatomy("qwen3next qwen35 qwen35moe qwen4exp clef", (_interval(4),)),
    Anatomy("minimax-01", (_interval(8),), derived=(MINIMAX_SLOPES,)),
    Anatomy("jamba plamo2 granitehybrid lfm2moe kimi-linear bailingmoe3", (RECURRENT_WITHOUT_KV,)),
    Anatomy("lfm2", (RECURRENT_WITHOUT_KV, DECISION)),
    Anatomy("glm5-next", (RECURRENT_WITHOUT_KV, INDEXERS)),
    Anatomy("nemotron_h nemotron_h_moe", (Listed("attention.head_count_kv", zero="", nonzero="attention"),)),
    Anatomy("rwkv7 arwkv7", essential_first=FIRST_VALUES),
    # Roles of the first layers.
    Anatomy("deepseek4", (Leading("hash", "", "hash_layer_count", shapes=True),)),
    Anatomy("qwen3vl qwen3vlmoe", (DEEPSTACK,)),
    Anatomy("hy_v4 deepseek32", (INDEXERS,)),
    Anatomy("glm-dsa", (INDEXERS,), assumed=(Assumed("attention.indexer.types", _glm_5_2_indexers),)),
    # What llama.cpp derives from the number of layers.
    Anatomy("deepseek2", derived=(DEEPSEEK2_Q_RANK, DEEPSEEK2_GATING)),
    Anatomy("minicpm", derived=(MINICPM_SCALE,)),
    Anatomy("minicpm3", derived=(MINICPM3_SCALE,)),
    Anatomy("baichuan", derived=(BAICHUAN_POSITIONS,)),
    Anatomy("command-r", derived=(AT_LEAST_64,)),
    # Models in which no layer stands for itself.
    Anatomy("gemma4-assistant", (LISTED_WINDOW,), refusal="it predicts for another model, layer by layer"),
    Anatomy("eagle3 dflash", refusal="it is a draft of another model whose layers it names"),
    Anatomy("hrm_text", refusal="llama.cpp runs its two stacks in cycles and wants exactly the layers they have"),
)

PLAIN = frozenset(
    """
    apertus arcee arctic bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm dbrx deci deepseek
    deepseek2-ocr dots1 dream ernie4_5 eurobert exaone falcon falcon-h1 gemma glm4 glm4moe gpt2 gptj gptneox granite
    granitemoe graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2
    jina-bert-v2 jina-bert-v3 k2-horizon llada llada-moe llama llama-embed maincoder mamba mamba2 minimax-m2
    minimax-m3 mistral3 mistral4 mpt nanbeige nemotron neo-bert olmo olmoe openelm orion paddleocr pangu-embedded
    phi2 phi3 phimoe plamo plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3tts refact rnd1 seed_oss
    stablelm starcoder starcoder2 talkie xverse
    """.split()
)

# Their blocks have other names (`enc.blk.`, `v.blk.`, `convnext.`), numbered apart: nothing called blk. to prune.
WITHOUT_LAYERS = frozenset("t5 t5encoder wavtokenizer-dec clip".split())

_BY_NAME = {name: anatomy for anatomy in ANATOMIES for name in anatomy.names.split()}
ARCHITECTURES = PLAIN | WITHOUT_LAYERS | _BY_NAME.keys()


def anatomy_of(architecture: str) -> Anatomy | None:
    """What is known of an architecture; None: nothing."""
    if architecture in PLAIN or architecture in WITHOUT_LAYERS:
        return Anatomy(architecture)
    return _BY_NAME.get(architecture)
