"""Modules that hold integers and compute with them."""
