"""Healing a pruned model in closed form: streams, layer by layer, and the ridge that refits a layer's output matrices.

It imports the child's own modules only.
"""
