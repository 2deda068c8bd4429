"""Whole views of the model: map, experts, metadata, weights, differences, fit.

They import `lists` and the modules of `dialogs` beside this room.
"""
