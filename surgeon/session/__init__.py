"""What is on the table: the plan with its undo, marks, rows, filters and edits.

May import `measure` and whatever lies below it; knows no textual.
"""
