"""Fit: which type each tensor gets so that a model of a given size loses least.

May import everything below; knows neither llama.cpp nor the screen. What is measured comes from `measure`.
"""
