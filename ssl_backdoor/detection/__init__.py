"""Filters and detectors: who tells poisons, triggers and backdoored encoders from what is clean, and how well."""
