"""llama.cpp at work: importance matrices, perplexity, KL divergence, tasks, speed.

The engine runs in a child process (`child.py`), so that an abort inside llama.cpp is one line here. `client.py` is the
side the commands and the screen use; `protocol.py` holds every message that crosses between the two.
"""
