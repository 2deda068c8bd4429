"""What leaving out layers or experts does, one after the other, and the choice that follows.

Imports the modules of `measure` beside it.
"""
