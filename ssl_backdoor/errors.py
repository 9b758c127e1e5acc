"""One exception tree.

SslBackdoorError
├── UserError            the user can mend it: one sentence, exit code 2
│   ├── SpecError        a value in a spec or on the command line
│   ├── DataError        the images, captions or archives that were given
│   ├── StoreError       the artifact store: missing, unwritable, full, refused
│   └── CheckpointError  a file that should hold weights and does not
└── TrainingError        the optimisation itself failed (a non-finite loss)
"""


class SslBackdoorError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(SslBackdoorError):
    """Something the user can mend. The message says what was expected, what was found and what to do."""


class SpecError(UserError, ValueError):
    """A value in a spec is impossible or does not fit the others."""


class DataError(UserError):
    """The data that were given cannot be used."""


class StoreError(UserError):
    """The artifact store cannot be reached, read or written."""


class CheckpointError(UserError):
    """A checkpoint is missing, truncated, altered or not a checkpoint."""


class TrainingError(SslBackdoorError):
    """Training cannot go on; the message names the step."""
