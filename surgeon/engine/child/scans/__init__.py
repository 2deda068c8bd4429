"""Many measurements of one loaded model: each layer removed, experts silenced. May import the child's other rooms."""
