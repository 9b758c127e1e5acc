"""The service stack of one machine: PostgreSQL, SeaweedFS, Prefect, MLflow and Ray on loopback, kept in one folder.

``python -m infra.stack up|down|status`` (``make up`` and so on). ``services`` lists what runs, in dependency order;
each service is a record of functions in a module of its own; ``control`` starts, watches and stops them; ``processes``
is the only code that signals anything, and it signals only what this stack started.
"""
