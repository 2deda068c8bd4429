"""Dialogs that follow a running job; Escape leaves it running.

They import the modules of `dialogs` beside this room.
"""
