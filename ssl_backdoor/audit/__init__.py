"""Audits: what can be said of an encoder or of a data set that somebody else made, and how much would have been seen.

A composition of the stages; nothing is computed here that another part of the library could do.
"""
