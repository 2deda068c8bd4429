"""llama.cpp at work: importance matrices, perplexity, KL divergence, tasks, speed.

llama.cpp runs in a child process (`child/`), so that an abort inside it is one line here. `client` is the side that
commands and the screen use; `protocol` holds every message that crosses between the two, `frames` puts them on a pipe.
May import leaves only.
"""
