"""One module per tensor type: its block drawn in the docstring, `quantize` and `dequantize`.

May import search and lanes.
"""
