"""Measures how far a few poisoned samples bend self-supervised pre-training, and whether a defence straightens it.

The library: no orchestrator, usable from a notebook. ``specs`` is the page to read first.
"""
