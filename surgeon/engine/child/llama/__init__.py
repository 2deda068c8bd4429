"""llama.cpp bound through ctypes: layouts, loading, contexts, the graph's callback, weights changed in place.

May import `engine.protocol`, `engine.libraries` and `engine.errors`; every other room of the child stands on this one.
"""
