"""Quantizers and dequantizers of every GGUF tensor format, in Numba, with ggml's bytes."""
