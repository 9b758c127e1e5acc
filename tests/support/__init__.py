"""What tests share: servers, programs that are killed, small data and trainings."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
