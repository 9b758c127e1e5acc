"""Attacks on a finished encoder, one file per paper: see ``TamperAttack`` for what one is."""
