"""surgeon: operate on large language models in the terminal."""

__version__ = "0.1.0"
