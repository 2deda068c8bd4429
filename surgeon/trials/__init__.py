"""The journal of trials: what was made of a model and its measurements. May import `resolve`."""
