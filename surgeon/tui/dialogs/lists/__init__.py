"""Dialogs that choose a row of a list. They import the modules of `dialogs` beside this room."""
