"""Heal files: matrices refitted to make up for pruned layers, kept in a GGUF of their own.

It imports `model`, `gguf` and the leaves. They are made by `surgeon.measure.healing.heal_run`.
"""
