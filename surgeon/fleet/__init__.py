"""The work of several machines, by Dask: what of a measurement is one task, and how the results come together.

May import `measure` and everything below it; `distributed` is imported in `cluster` and `order`, nowhere else.
"""
