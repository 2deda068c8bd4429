"""Experts × layers under the plan: figures, filters, cells, and the curve of what pruning them costs.

Imports `session`; the table of figures comes first, the grid last.
"""
