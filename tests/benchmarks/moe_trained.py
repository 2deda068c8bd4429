"""Does saliency choose better? A small model with experts, trained for minutes, a quarter of its experts silenced.

python tests/benchmarks/moe_trained.py HELDOUT.txt TEXT.txt [TEXT.txt ...] [--minutes 6] [--out moe.gguf]

Needs torch (pip install torch). Trained on the TEXTs, of which the first is the calibration text too: mixtral's form
(softmax over 16 experts, the two best renormalized, load balanced with the Switch loss, arXiv 2101.03961, at 0.01), 4
layers, 8.1 million weights in experts, embeddings and head of the bundled model to begin with. KL divergence from the
model with all experts is measured on HELDOUT, of which no word may be in a TEXT.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from moe_from_dense import DEMO, EXPERTS, Array, compare, perplexity, weights

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "core")]

import torch  # noqa: E402
from gguf_builder import build_gguf, value_of  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from surgeon.engine.child.llama.binding import Binding  # noqa: E402
from surgeon.engine.child.llama.model import LlamaModel  # noqa: E402
from surgeon.engine.libraries import find_libraries  # noqa: E402
from surgeon.model.model import load_model  # noqa: E402

LAYERS, EMBD, HEADS, HEAD, WIDTH, USED = 4, 256, 4, 64, 160, 2
BALANCE, RATE, TOKENS, BATCH = 0.01, 2e-3, 256, 8


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(EMBD))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (EMBD,), self.weight, 1e-5)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.output = (nn.Linear(EMBD, EMBD, bias=False) for _ in range(4))

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (part(x).view(batch, tokens, HEADS, HEAD).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(rotated(q, turn), rotated(k, turn), v, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, EMBD))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """RoPE over neighbouring pairs, as the architecture llama has it."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(EMBD, EXPERTS, bias=False)
        self.gate, self.up = (nn.Parameter(torch.randn(EXPERTS, WIDTH, EMBD) / EMBD**0.5) for _ in range(2))
        self.down = nn.Parameter(torch.randn(EXPERTS, EMBD, WIDTH) / WIDTH**0.5 / (2 * LAYERS) ** 0.5)
        self.imbalance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, EMBD)
        probabilities = self.router(flat).softmax(-1)
        best, chosen = probabilities.topk(USED, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        load = functional.one_hot(chosen, EXPERTS).sum(1).float().mean(0) / USED
        self.imbalance = EXPERTS * (load * probabilities.mean(0)).sum()
        out = torch.zeros_like(flat)
        for expert in range(EXPERTS):
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            part = flat[rows]
            hidden = functional.silu(part @ self.gate[expert].T) * (part @ self.up[expert].T)
            out = out.index_add(0, rows, best[rows, place, None] * (hidden @ self.down[expert].T))
        return out.view_as(x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.attention, self.ffn_norm, self.mixture = Norm(), Attention(), Norm(), Mixture()

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), turn)
        return x + self.mixture(self.ffn_norm(x))


class Mixtral(nn.Module):
    def __init__(self, embeddings: Array, head: Array) -> None:
        super().__init__()
        self.embeddings, self.head = (nn.Parameter(torch.from_numpy(one)) for one in (embeddings, head))
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])
        self.norm = Norm()
        angles = torch.outer(torch.arange(TOKENS), 1e4 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.turn = torch.polar(torch.ones_like(angles), angles)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embeddings[tokens]
        for layer in self.layers:
            x = layer(x, self.turn)
        return self.norm(x) @ self.head.T

    @property
    def imbalance(self) -> Tensor:
        return sum((layer.mixture.imbalance for layer in self.layers), torch.zeros(()))


def tokens_of(texts: list[Path]) -> Tensor:
    model = LlamaModel(Binding(find_libraries()), str(DEMO))
    found = np.concatenate([model.tokenize(text.read_bytes()) for text in texts])
    model.close()
    return torch.from_numpy(found.astype(np.int64))


def train(model: Mixtral, tokens: Tensor, minutes: float) -> Iterator[str]:
    """AdamW, the rate falling to zero over the time there is; says now and then where it stands."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(0)
    began, step, seen = time.monotonic(), 0, 0.0
    while (part := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * part))
        starts = torch.randint(len(tokens) - TOKENS, (BATCH, 1), generator=draw)
        window = tokens[starts + torch.arange(TOKENS + 1)[None]] if len(tokens) > TOKENS else tokens[None]
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * model.imbalance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, 0.95 * seen + 0.05 * loss.item()
        if step % 50 == 0:
            uneven = model.imbalance.item() / LAYERS
            times = step * BATCH * TOKENS / len(tokens)
            yield f"step {step}, {times:.1f} times the text: loss {seen:.3f}, imbalance {uneven:.2f}"


def save(model: Mixtral, out: Path) -> Path:
    source = load_model(DEMO)
    kv = {key: value for key, value in source.file.kv.items() if key != "general.name"}
    numbers = {"block_count": LAYERS, "feed_forward_length": WIDTH, "attention.head_count_kv": HEADS}
    numbers |= {"expert_count": EXPERTS, "expert_used_count": USED}
    kv |= {"general.file_type": value_of(0)} | {f"llama.{key}": value_of(value) for key, value in numbers.items()}
    named = {"token_embd": model.embeddings, "output": model.head, "output_norm": model.norm.weight}
    for number, layer in enumerate(model.layers):
        attention, mixture = layer.attention, layer.mixture
        parts = {"attn_norm": layer.attn_norm, "ffn_norm": layer.ffn_norm, "ffn_gate_inp": mixture.router}
        parts |= {f"attn_{name}": getattr(attention, name) for name in ("q", "k", "v", "output")}
        named |= {f"blk.{number}.{name}": part.weight for name, part in parts.items()}
        named |= {f"blk.{number}.ffn_{name}_exps": getattr(mixture, name) for name in ("gate", "up", "down")}
    tensors = {f"{name}.weight": value.detach().float().contiguous().numpy() for name, value in named.items()}
    return build_gguf(out, kv, tensors)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heldout", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="keep the model")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    source = load_model(DEMO)
    model = Mixtral(weights(source, "token_embd.weight"), weights(source, "output.weight"))
    for line in train(model, tokens_of(options.texts), options.minutes):
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as name:
        path = save(model, options.out or Path(name, "moe.gguf"))
        print(f"perplexity {perplexity(path, options.heldout, options.chunks):.2f}", flush=True)
        compare(path, options.texts[0], options.heldout, options.chunks, options.seeds, Path(name))


if __name__ == "__main__":
    main()
