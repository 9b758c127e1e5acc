"""Measures how much a few poisoned samples corrupt self-supervised pre-training, and whether a defence undoes it.

The library: no orchestrator, usable from a notebook. ``specs`` is the page to read first.
"""
