"""Dialogs with fields, whose answer is a job or a file. They import the modules of `dialogs` beside this room."""
