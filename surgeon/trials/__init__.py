"""The journal of trials: what was made of a model and how it measured. May import `resolve`."""
