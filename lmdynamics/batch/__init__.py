"""Notebooks run headless: parameters are checked, each runs in a process of its own, figures and records are saved."""
