"""What error feedback gains: the same mix with the stock encoder and with feedback, compared by llama.cpp.

python tests/benchmarks/bench_feedback_quality.py MODEL.gguf --calibration A.txt B.txt --texts prose=P.txt code=C.txt \
    [--types Q2_K Q3_K_M ...] [--chunks 8] [--noise] [--folder DIR] [--threads 1]

Calibration files are joined into one text; none of the texts may be among them. Every stage is left in DIR and found
again by a later run. Prints a Markdown table: KL divergence from MODEL (mean ± standard error, 99 %, 99.9 %), same top
token, perplexity, and the ratio of the mean divergences; below it their geometric mean.

--noise: for a MODEL that was restored from a 4-bit file. Its weights lie on a grid that 4-bit types hit exactly, so
uniform noise of one step of that grid is added to every matrix first, and the result is the "original".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.model.categories import kept_because
from surgeon.model.model import load_model

TYPES = "Q2_K IQ3_XXS Q3_K_M IQ4_XS Q4_K_M Q5_K_M".split()
ROOT = Path(__file__).parents[2]
HEAD = """| type | text | encoder | KLD mean | 99 % | 99.9 % | same top % | PPL | ratio |
|---|---|---|---:|---:|---:|---:|---:|---:|"""


def surgeon(*words: object) -> str:
    """Run a command of the program; its stdout. Raises CalledProcessError after showing what it said."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "surgeon", *map(str, words)], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout


def with_noise(model: Path, out: Path) -> Path:
    """A copy whose matrices have uniform noise of one step of their own grid, half a step to either side.

    The step of 32 weights is the least difference between two of them: the grid they were restored from.
    """
    if out.exists():
        return out
    part = out.with_suffix(".part")
    shutil.copyfile(model, part)
    rng = np.random.default_rng(20)
    opened = load_model(model)
    data = np.memmap(part, np.uint8, "r+")
    with opened.file:
        for tensor in opened.tensors:
            if tensor.type_name != "F16" or kept_because(tensor.name, tensor.ne, opened.architecture):
                continue
            info = tensor.info
            values = data[info.offset : info.offset + info.nbytes].view("<f2").reshape(-1, 32)
            for start in range(0, len(values), 1 << 16):
                part_of = values[start : start + (1 << 16)].astype(np.float32)
                gaps = np.diff(np.sort(part_of, axis=1), axis=1)
                # Differences below 1 % of the range are the rounding of float16.
                gaps[gaps <= 0.01 * np.ptp(part_of, axis=1, keepdims=True)] = np.inf
                step = gaps.min(axis=1, keepdims=True)
                step[~np.isfinite(step)] = 0
                noise = (rng.random(part_of.shape, np.float32) - np.float32(0.5)) * step
                values[start : start + (1 << 16)] = (part_of + noise).astype("<f2")
    data.flush()
    part.rename(out)
    return out


class Bench:
    """All stages on one model; each leaves a file in the folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model: Path = options.model
        if options.noise:
            self.model = with_noise(options.model, self.folder / f"{options.model.stem}-noise.gguf")
        self.results = self.folder / "results.jsonl"
        self.texts = dict(word.split("=", 1) for word in options.texts)

    def collect(self) -> tuple[Path, Path]:
        """The imatrix and the second moments of the calibration text."""
        imatrix, moments = self.folder / "imatrix.gguf", self.folder / "imatrix.moments.gguf"
        if not moments.exists():
            text = self.folder / "calibration.txt"
            text.write_bytes(b"\n".join(path.read_bytes() for path in self.options.calibration))
            began = time.monotonic()
            words = ["imatrix", "-m", self.model, "-f", text, "-o", imatrix, "-t", self.options.threads]
            surgeon(*words, "--no-ppl", "--moments", moments, "--overwrite", "--resume")
            print(f"collected in {time.monotonic() - began:.0f} s, {moments.stat().st_size / 1e6:.0f} MB", flush=True)
        return imatrix, moments

    def write(self, kind: str, encoder: str) -> tuple[Path, float]:
        """One output and the seconds it took (0 where it was there)."""
        imatrix, moments = self.collect()
        out = self.folder / f"{kind}-{encoder}.gguf"
        if out.exists():
            return out, 0.0
        words = ["--imatrix", imatrix, *(["--moments", moments] if encoder == "feedback" else [])]
        began = time.monotonic()
        surgeon("quantize", *words, *self.options.option, self.model, out, kind, self.options.threads)
        return out, time.monotonic() - began

    def base(self, name: str) -> Path:
        """Log-probabilities of the model itself."""
        out = self.folder / f"{name}.base"
        if not out.exists():
            part = out.with_suffix(".part")
            surgeon(
                "perplexity", "-m", self.model, "-f", self.texts[name], *self._window(), "--kl-divergence-base", part
            )
            part.rename(out)
        return out

    def measure(self, kind: str, encoder: str, name: str) -> dict[str, Any]:
        """The figures of one output on one text."""
        key = {"type": kind, "encoder": encoder, "text": name, "chunks": self.options.chunks}
        for line in self.results.read_text().splitlines() if self.results.exists() else []:
            known: dict[str, Any] = json.loads(line)
            if all(known[part] == value for part, value in key.items()):
                return known
        out, seconds = self.write(kind, encoder)
        words = ["perplexity", "-m", out, *self._window(), "--kl-divergence-base", self.base(name), "--kl-divergence"]
        found = {**key, "bytes": out.stat().st_size, "write_seconds": seconds, **json.loads(surgeon(*words, "--json"))}
        with self.results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        return found

    def _window(self) -> list[object]:
        return ["-c", 512, "--chunks", self.options.chunks, "-t", self.options.threads]

    def table(self) -> None:
        """Measure everything, a row as soon as it is there."""
        print(HEAD)
        ratios = []
        for kind in self.options.types:
            for name in self.texts:
                stock, feedback = (self.measure(kind, encoder, name) for encoder in ("stock", "feedback"))
                grown = feedback["bytes"] - stock["bytes"]  # the encoder's own keys, not a byte of a tensor
                assert 0 <= grown < 1024, f"{kind}: {grown} bytes more with feedback"
                ratios.append(feedback["mean_kld"] / stock["mean_kld"])
                print(row(stock, ""), row(feedback, f"{ratios[-1]:.2f}"), sep="\n", flush=True)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"\ngeometric mean of {len(ratios)} ratios: {mean:.3f}; largest {max(ratios):.3f}")


def row(found: dict[str, Any], ratio: str) -> str:
    """One line of the table."""
    cells = [
        found["type"], found["text"], found["encoder"], f"{found['mean_kld']:.5f} ± {found['mean_kld_error']:.5f}",
        f"{found['kld_99']:.4f}", f"{found['kld_99.9']:.3f}", f"{100 * found['same_top']:.1f}",
        f"{found['ppl']:.3f} ± {found['ppl_error']:.3f}", ratio,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("feedback-bench"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--option", nargs="*", default=[], help="further options of surgeon quantize")
    parser.add_argument("--collect-only", action="store_true")
    options = parser.parse_args()
    bench = Bench(options)
    bench.collect()
    if not options.collect_only:
        bench.table()


if __name__ == "__main__":
    main()
