"""Corpora, and tasks with exact answers."""

from labkit.data.corpora import Corpus, load_corpus

__all__ = ["Corpus", "load_corpus"]
