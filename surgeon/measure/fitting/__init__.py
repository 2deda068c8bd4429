"""Measurements for a fit: sensitivities of groups, the swap check, ladders of sizes.

Imports the modules of `measure` beside it.
"""
