"""Make a context for each model: python memory_probe.py N_CTX N_SEQ MODEL...; llama.cpp's log on stderr tells sizes.

A process of its own, because llama.cpp aborts on what it cannot run.
"""

from __future__ import annotations

import sys

from surgeon.engine.child.llama.binding import Binding
from surgeon.engine.child.llama.model import ContextSize, LlamaModel, opened
from surgeon.engine.libraries import find_libraries

if __name__ == "__main__":
    binding = Binding(find_libraries())
    n_ctx, n_seq = int(sys.argv[1]), int(sys.argv[2])
    for path in sys.argv[3:]:
        print(f"=== {path}", file=sys.stderr, flush=True)
        model = LlamaModel(binding, path)
        with opened(model, ContextSize(n_ctx // n_seq, n_seq, 512, 512), 1, settings={"swa_full": 0}):
            pass
        model.close()
