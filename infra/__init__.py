"""What runs around the experiments: pinned versions, and the services of one machine in ``infra.stack``."""
