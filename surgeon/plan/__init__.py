"""What the user wants: the plan with its undo, recipes, TYPEs, patterns.

May import leaves; knows no model.
"""
