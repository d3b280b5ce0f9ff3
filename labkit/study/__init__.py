"""Measurements that take longer than a notebook may: run once, recorded in data/results."""
