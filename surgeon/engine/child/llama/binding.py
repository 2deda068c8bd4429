"""The C functions of llama.cpp that are used, with their signatures, and the checks made before any of them matters."""

from __future__ import annotations

import ctypes as c
import os
import sys
from typing import Any

from surgeon.engine.child.llama.layouts import (
    LOG_CALLBACK,
    SUPPORTED,
    Batch,
    GgmlTensor,
    Layout,
    ModelParams,
    layout_for,
    wrong_default,
)
from surgeon.engine.errors import INSTALL, EngineMissing
from surgeon.engine.libraries import Libraries

_P, _I32, _BOOL = c.c_void_p, c.c_int32, c.c_bool
_LLAMA: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_version": (c.c_char_p, []),
    "llama_log_set": (None, [LOG_CALLBACK, _P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_model_load_from_file": (_P, [c.c_char_p, ModelParams]),
    "llama_model_free": (None, [_P]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_model_n_layer": (_I32, [_P]),
    "llama_model_n_embd_out": (_I32, [_P]),
    "llama_model_n_ctx_train": (_I32, [_P]),
    "llama_model_n_params": (c.c_uint64, [_P]),
    "llama_model_size": (c.c_uint64, [_P]),
    "llama_model_desc": (_I32, [_P, c.c_char_p, c.c_size_t]),
    "llama_free": (None, [_P]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, _BOOL]),
    "llama_decode": (_I32, [_P, Batch]),
    "llama_synchronize": (None, [_P]),
    "llama_get_logits": (_P, [_P]),
    "llama_get_embeddings_seq": (_P, [_P, _I32]),
    "llama_tokenize": (_I32, [_P, c.c_char_p, _I32, _P, _I32, _BOOL, _BOOL]),
    "llama_vocab_n_tokens": (_I32, [_P]),
    "llama_vocab_bos": (_I32, [_P]),
    "llama_vocab_get_add_bos": (_BOOL, [_P]),
    "llama_vocab_get_add_eos": (_BOOL, [_P]),
}
_GGML_BASE: dict[str, tuple[Any, list[Any]]] = {
    "ggml_op_name": (c.c_char_p, [c.c_int]),
    "ggml_nbytes": (c.c_size_t, [c.POINTER(GgmlTensor)]),
    "ggml_backend_buffer_is_host": (_BOOL, [_P]),
    "ggml_backend_tensor_get": (None, [c.POINTER(GgmlTensor), _P, c.c_size_t, c.c_size_t]),
    "ggml_backend_tensor_set": (None, [c.POINTER(GgmlTensor), _P, c.c_size_t, c.c_size_t]),
    "ggml_backend_tensor_alloc": (c.c_int, [_P, c.POINTER(GgmlTensor), _P]),
    "ggml_backend_buffer_get_type": (_P, [_P]),
    "ggml_backend_buffer_get_base": (_P, [_P]),
    "ggml_backend_buffer_set_usage": (None, [_P, c.c_int]),
    "ggml_backend_buffer_free": (None, [_P]),
    "ggml_backend_buft_alloc_buffer": (_P, [_P, c.c_size_t]),
    "ggml_backend_buft_get_alloc_size": (c.c_size_t, [_P, c.POINTER(GgmlTensor)]),
    "ggml_backend_buft_is_host": (_BOOL, [_P]),
    "ggml_row_size": (c.c_size_t, [c.c_int, c.c_int64]),
    "ggml_type_size": (c.c_size_t, [c.c_int]),
    "ggml_backend_dev_backend_reg": (_P, [_P]),
    "ggml_backend_dev_buffer_type": (_P, [_P]),
    "ggml_backend_reg_get_proc_address": (_P, [_P, c.c_char_p]),
    "ggml_backend_dev_supports_op": (_BOOL, [_P, c.POINTER(GgmlTensor)]),
    "ggml_backend_dev_name": (c.c_char_p, [_P]),
    "ggml_backend_dev_description": (c.c_char_p, [_P]),
    "ggml_backend_dev_memory": (None, [_P, _P, _P]),
}
_GGML: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (c.c_size_t, []),
    "ggml_backend_dev_get": (_P, [c.c_size_t]),
}

_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR


class Binding:
    """The loaded libraries. `llama`, `ggml` and `base` are ctypes handles whose functions have their signatures.

    Raises EngineMissing where the libraries do not load or are of a build never tried.
    """

    def __init__(self, libraries: Libraries) -> None:
        self.libraries = libraries
        self.base = _open(libraries.ggml_base)
        self.ggml = _open(libraries.ggml)
        self.llama = _open(libraries.llama)
        self.version = self._version()
        self.layout = self._layout()
        for handle, table in ((self.llama, _LLAMA), (self.base, _GGML_BASE), (self.ggml, _GGML)):
            for name, signature in table.items():
                self._declare(handle, name, signature)
        self._context_functions()
        self.last_error = ""
        self._log = LOG_CALLBACK(self._hear)
        self.llama.llama_log_set(self._log, None)
        if libraries.backends is not None:
            self._declare(self.ggml, "ggml_backend_load_all_from_path", (None, [c.c_char_p]))
            self.ggml.ggml_backend_load_all_from_path(os.fsencode(libraries.backends))
        self.llama.llama_backend_init()
        self._check_defaults()
        # Operation numbers move between builds; names do not.
        names = [self.base.ggml_op_name(number) for number in range(60)]
        self.mul_mat, self.mul_mat_id = names.index(b"MUL_MAT"), names.index(b"MUL_MAT_ID")

    @property
    def label(self) -> str:
        """What was used, for reports: `xllamacpp 2026.10.11549 (llama.cpp 0.6.0-dev)`."""
        return f"{self.libraries.label} (llama.cpp {self.version})"

    def device_memory(self) -> list[dict[str, object]]:
        """Of each device its `name`, `description`, and bytes of memory `free` and in `total` (0: not known)."""
        found: list[dict[str, object]] = []
        free, total = c.c_size_t(), c.c_size_t()
        for index, text in enumerate(self.devices()):
            name, _, description = text.partition(": ")
            device = self.ggml.ggml_backend_dev_get(index)
            self.base.ggml_backend_dev_memory(device, c.byref(free), c.byref(total))
            found.append({"name": name, "description": description, "free": free.value, "total": total.value})
        return found

    def devices(self) -> list[str]:
        """Name and description of each device ggml found, `CPU` included."""
        found = []
        for index in range(self.ggml.ggml_backend_dev_count()):
            device = self.ggml.ggml_backend_dev_get(index)
            name = self.base.ggml_backend_dev_name(device).decode()
            found.append(f"{name}: {self.base.ggml_backend_dev_description(device).decode()}")
        return found

    def _hear(self, level: int, text: bytes | None, _data: int | None) -> None:
        """The child's stderr is the log file of the run; the reason of a failure is kept for the line to the user."""
        if not text:
            return
        os.write(sys.stderr.fileno(), text)
        line = " ".join(text.decode(errors="replace").split())
        if level == _LOG_ERROR and ("error loading model: " in line or not self.last_error):
            self.last_error = line.rpartition("error loading model: ")[2][:200]

    def _version(self) -> str:
        function = getattr(self.llama, "llama_version", None)
        if function is None:
            raise EngineMissing(
                f"{self.libraries.llama}: a llama.cpp older than 0.2, whose structs are not known; "
                f"supported are {SUPPORTED}: {INSTALL}"
            )
        function.restype, function.argtypes = c.c_char_p, []
        text: bytes = function()
        return text.decode(errors="replace")

    def _layout(self) -> Layout:
        layout = layout_for(self.version)
        if layout is None:
            raise EngineMissing(
                f"{self.libraries.llama}: llama.cpp {self.version}, whose structs are not known; "
                f"supported are {SUPPORTED}: {INSTALL}"
            )
        return layout

    def _declare(self, handle: c.CDLL, name: str, signature: tuple[Any, list[Any]]) -> None:
        function = getattr(handle, name, None)
        if function is None:
            raise EngineMissing(f"{self.libraries.llama}: this llama.cpp has no {name}(); {INSTALL}")
        function.restype, function.argtypes = signature

    def _context_functions(self) -> None:
        params = self.layout.context_params
        self._declare(self.llama, "llama_context_default_params", (params, []))
        self._declare(self.llama, "llama_init_from_model", (_P, [_P, params]))

    def _check_defaults(self) -> None:
        wrong = wrong_default(self.llama.llama_context_default_params())
        if wrong is not None:
            raise EngineMissing(
                f"{self.libraries.llama}: llama.cpp {self.version} lays its parameters out in an unknown way "
                f"({wrong}); {INSTALL}"
            )


def _open(path: os.PathLike[str]) -> c.CDLL:
    try:
        return c.CDLL(os.fspath(path), mode=c.RTLD_GLOBAL)
    except OSError as error:
        text = str(error)
        if "libgomp" in text:
            raise EngineMissing(
                "llama.cpp needs the system's libgomp.so.1, which is missing: apt install libgomp1 "
                "(Fedora: dnf install libgomp, Arch: pacman -S gcc-libs)"
            ) from error
        raise EngineMissing(f"{path} does not load: {text}; {INSTALL}") from error
