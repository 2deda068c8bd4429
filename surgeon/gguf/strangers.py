"""What a file that is not a GGUF is, by its first bytes, and what to do with it."""

from __future__ import annotations

import struct

_CONVERT = "convert the folder of the original model with `surgeon convert`"
_DOWNLOAD = "download the file itself"
_OLD = "this format is no longer read by anything; convert the original model again"
# How the file begins -> what it is, what to do.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"lmgg", "a GGML file", "whisper.cpp may read it; else convert the original model again"),
    (b"fmgg", "a GGMF file, from before GGUF", _OLD),
    (b"tjgg", "a GGJT file, from before GGUF", _OLD),
    (b"algg", "a GGLA file, a LoRA from before GGUF", "convert the adapter again with convert_lora_to_gguf.py"),
    (b"FUGG", "a big-endian GGUF", "convert it for this machine with gguf-py's gguf_convert_endian"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "run `git lfs pull` in its folder"),
    (b"PK\x03\x04", "a zip archive (a llamafile or a PyTorch checkpoint)", f"unpack the .gguf, or {_CONVERT}"),
    (b"MZqFpD", "a llamafile program", "unpack the .gguf in it with unzip"),
    (b"\x7fELF", "a program", "name a .gguf file"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"(\xb5/\xfd", "compressed with zstd", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"\x80\x02", "a Python pickle (a PyTorch checkpoint)", _CONVERT),
    (b"\0" * 16, "a file of zeros at its beginning, an unfinished download", f"{_DOWNLOAD} again"),
)
HEAD_BYTES = 64


def what_is(head: bytes, size: int) -> tuple[str, str] | None:
    """(what the file is, what to do) by its first bytes, up to HEAD_BYTES of `size`; None for what nobody knows."""
    for beginning, what, remedy in _BEGINNINGS:
        if head.startswith(beginning):
            return what, remedy
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page, not the file it shows",
            f"{_DOWNLOAD} (on Hugging Face /resolve/ in its address, not /blob/)",
        )
    if text.startswith((b"{", b"[")):
        return "a JSON text, perhaps a server's refusal", f"look into it, then {_DOWNLOAD}"
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack_from("<Q", head)[0] < size:
        return "a safetensors file", _CONVERT
    if _is_old_imatrix(head):
        return "an importance matrix in the old format", "give it with --imatrix; `surgeon stats` shows it"
    return None


def _is_old_imatrix(head: bytes) -> bool:
    """int32 entries, int32 length, a name."""
    if len(head) < 9:
        return False
    count, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + max(0, min(length, HEAD_BYTES - 8))]
    return 0 < count < 1 << 20 and 0 < length < 1 << 10 and name.isascii() and name.decode().isprintable()
