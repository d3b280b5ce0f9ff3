"""Measure a model: perplexity, tasks with exact answers, size, latency."""
