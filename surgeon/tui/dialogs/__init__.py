"""Dialogs: one question each, Escape leaves everything as it was."""
