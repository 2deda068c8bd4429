"""What an architecture's layers are, and what pruning some of them asks for.

table.py     the data: one entry per architecture, nothing but names, periods and counts
roles.py     the kinds of rule by which llama.cpp gives a layer its role
derived.py   what llama.cpp works out from the number of layers
shifts.py    which roles would change, and which neighbours to prune so that none does
edits.py     the metadata keys to change
pruning.py   all of it for one model: `prune_metadata`, `layer_roles`
experts.py   the data about experts: one entry per architecture that has them
expert_pruning.py  what leaving experts out asks of tensors and counts: `prune_experts`
"""

from surgeon.anatomy.expert_pruning import ExpertResult, edit_counts, expert_model, prune_experts
from surgeon.anatomy.pruning import AnatomyResult, TensorScale, TensorSlice, layer_roles, prune_metadata
from surgeon.anatomy.table import ARCHITECTURES, Anatomy, anatomy_of

__all__ = [
    "ARCHITECTURES",
    "Anatomy",
    "AnatomyResult",
    "ExpertResult",
    "TensorScale",
    "TensorSlice",
    "anatomy_of",
    "edit_counts",
    "expert_model",
    "layer_roles",
    "prune_experts",
    "prune_metadata",
]
