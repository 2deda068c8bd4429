"""Runs over a text that collect importance matrices and second moments; kept so that they resume.

Imports the modules of `measure` beside it.
"""
