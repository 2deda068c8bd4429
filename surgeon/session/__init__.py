"""What is on the table: the plan with its undo, marks, rows, filters and edits.

May import everything below the screen but `measure`; knows no textual.
"""
