"""Measurements as whole runs: an engine, a plan or file, bases, progress, results on the disk.

May import `engine`, `trials` and `write`.
"""
