"""The child process `python -m surgeon.engine.child`: llama.cpp through ctypes, one job, answers on stdout.

It imports `engine.protocol`, `engine.frames`, `engine.libraries`, `engine.errors` and numpy, and nothing else of this
program; nothing outside imports it.
"""
