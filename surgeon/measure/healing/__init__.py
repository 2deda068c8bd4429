"""The refit of a pruned model: what it will cost, the run, and the check on texts that were not fitted.

Imports the modules of `measure` beside it.
"""
