"""Notebooks without a reader: parameters checked, one process per notebook, figures and recorded scalars kept."""
