"""Reading and laying out GGUF files: values, headers, shards, what a file is known by.

May import leaves and the table of formats.
"""
