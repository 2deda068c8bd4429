"""Second moments H = E[x xᵀ] of the inputs of a model's matrices: their file, what it costs, adding files up.

May import `imatrix`, `model` and the engine's `raw_moments`.
"""
