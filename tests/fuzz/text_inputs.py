"""Text and binary files that were good once, mutated: the seed decides."""

from __future__ import annotations

import json
import random
import struct
import zlib

RECIPE = """format = 1
type = "Q4_K_M"
threads = 4
pure = true
max-buffer-bytes = 1000000
output-tensor-type = "q6_k"
rules = ["attn_v=q6_k", "ffn_(up|down)=iq4_xs"]
prune = [1, 2]
[imatrix]
file = "a.gguf"
sha256 = "00"
include = ["blk"]
[types]
"blk.0.ffn_down.weight" = "q8_0"
[[override_kv]]
key = "general.name"
kind = "str"
value = "x"
"""
CONFIG = """theme = "dark"
ascii = false
columns = ["type", "size"]
metric = "sum"
threads = 2
gpu_layers = -1
llama_lib = "/x"
[keys]
prune = "p"
[colours]
accent = "#5fd7af"
"""
_TRIAL = {
    "event": "trial", "id": "1-a", "when": "2026", "label": "a", "size": 5, "source_size": 9, "bpw": 4.5,
    "measured": {"figures": {"ppl": 5.0}, "tasks": {"t": [1.0, 0.1]},
                 "speed": {"pp": {"mean": 1, "deviation": 0, "best": 2}}},
}  # fmt: skip
_EVENTS = (
    _TRIAL,
    {**_TRIAL, "id": "2-b"},
    {"event": "measured", "id": "1-a", "measured": {"figures": {"ppl": 4.0}, "conditions": {"n_ctx": 512}}},
    {"event": "best", "id": "2-b"},
    {"event": "forgotten", "id": "1-a"},
)
JOURNAL = "".join(f"\n{json.dumps(event)}\n" for event in _EVENTS)
# What stands for a value may become any of these.
_VALUES = (
    "null", "true", "-1", "0", "1.5", "1e999", "9" * 5000, "[" * 3000, "[" * 3000 + "]" * 3000, '"x"', '""', "{}", "[]",
    "[[1]]", '{"a": 1}', "nan", "inf", "NaN", "Infinity", "4294967296", "18446744073709551616", "1979-05-27",
    '"\\ud800"',
    "'''", '"\\u0000"', "0x10", "1_000",
)  # fmt: skip
_PIECES = ("\0", "\ufeff", "\r\n", "\n", "=", '"', "[", "]", "{", "}", ",", "#", "\x1b[31m", "\u202e", "é", "\\", "'")


def mutated(rng: random.Random, text: str) -> str:
    """A few changes: of values, of pieces, of lines."""
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        match rng.randrange(6):
            case 0:
                text = text[:place] + rng.choice(_PIECES) + text[place:]
            case 1:
                text = text[:place] + text[place + rng.randint(1, 20) :]
            case 2 | 3:
                text = _with_another_value(rng, text)
            case 4:
                lines = text.split("\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                text = "\n".join(lines)
            case _:
                text = text[:place] + chr(rng.choice((0, 7, 27, 127, 0x2028, 0xD800, 0x10FFFF))) + text[place + 1 :]
    return text


def _with_another_value(rng: random.Random, text: str) -> str:
    starts = [place for place, letter in enumerate(text) if letter in "=:,[" and place + 1 < len(text)]
    if not starts:
        return text
    start = rng.choice(starts) + 1
    end = min((found for sign in ",\n}]" if (found := text.find(sign, start)) >= 0), default=len(text))
    return f"{text[:start]} {rng.choice(_VALUES)}{text[end:]}"


def resume_log(rng: random.Random) -> bytes:
    """Lines whose checksums are right, whatever is in them."""
    first = {"digest": "d", "inputs": [[1, 2, 3, 4]], "headers": "h", "outputs": [7]}
    lines = [json.dumps(first), json.dumps({"finished": [[0, 1, 2], [1, 1, 2]]}), json.dumps({"placing": True})]
    out = b""
    for line in lines[: rng.randint(1, 3)]:
        text = (mutated(rng, line) if rng.random() < 0.6 else line).encode("utf-8", "surrogatepass")
        text = text.replace(b"\n", b" ")
        out += b"%08x %s\n" % (zlib.crc32(text), text)
    return out if rng.random() < 0.8 else out[: rng.randrange(len(out) + 1)]


def multiple_choice(rng: random.Random) -> bytes:
    """Tasks of llama-perplexity's binary, with a few bytes changed."""
    tasks = []
    for number in range(3):
        question, answers = b"question", [b"yes", b"no"]
        task = struct.pack("<I", len(question)) + question + struct.pack("<I", len(answers))
        task += b"".join(struct.pack("<I", len(answer)) + answer for answer in answers)
        tasks.append(task + struct.pack("<2i", number % 2, 1 - number % 2))
    position, positions = 4 + 4 * len(tasks), []
    for task in tasks:
        positions.append(position)
        position += len(task)
    data = bytearray(struct.pack(f"<{1 + len(tasks)}I", len(tasks), *positions) + b"".join(tasks))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        if rng.random() < 0.5:
            data[place] = rng.choice((0, 1, 127, 128, 255))
        else:
            data[place : place + 4] = struct.pack("<I", rng.choice((0, 2**31, 2**32 - 1, 100, 2**28)))
    return bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)


_ATOMS = (
    r"a b ffn . \. [ab] [^a] [a-c0-9_] \d \w \s \b \B ^ $ { } {e<=1} {i} {,2} {2} "
    r"{1,3} {9999} (?: ( (?= (?! (?<= (?P<x> ) | * + ? \1 \x61 \0 \ca é ++ \p{L} \h"
)
_MORE = (" ", "[[:alpha:]]", "[a&&b]", "[a--b]", "[]", "[^]", "([a-z]+)+@", "(.*)*", "\ud800", "\n", "[" * 50, "(" * 50)


def pattern(rng: random.Random) -> str:
    """A pattern, or what looks like one."""
    return "".join(rng.choice((*_ATOMS.split(), *_MORE)) for _ in range(rng.randint(1, 12)))


_WORDS = (
    "prune restore base type experts 26,29 0-1 1 0-4294967295 9999999999999 3- -1 25% 101% 16 calls saliency q4_k_m "
    "Q8_0 COPY attn_v=q6_k =q6_k x= ffn_(=q4_k .*=f32 --pure --tensor-type --prune-layers --prune-experts "
    "--override-kv --set general.name=str:x llama.block_count=int:99 a=b --delete-key general.name "
    "--include-weights --exclude-weights --output-tensor-type --split-max-size 4G 0M -1G --threads 5 --json "
    "--keep-split --imatrix --recipe in.gguf out.gguf llama-quantize ./quantize surgeon # ## ; ;; -- - --i-know "
    "--compat --shrink 0.5 nan inf 1e999 --max-buffer-size"
).split()


def words(rng: random.Random) -> list[str]:
    """Words that a user, or a script of someone's, may type."""
    return [_word(rng) for _ in range(rng.randint(0, 7))]


def _word(rng: random.Random) -> str:
    word = rng.choice(_WORDS)
    if rng.random() < 0.15:
        odd = ("", " ", "\n", "\x1b[31m", "\ud800", "\0", "'", '"', "9" * 5000, "é", "\u202e", "[" * 200, "\\")
        return rng.choice(odd)
    return mutated(rng, word) if rng.random() < 0.15 else word
