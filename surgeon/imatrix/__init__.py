"""Importance matrices: both file formats, statistics, coverage, what is collected beside them. May import `model`."""
