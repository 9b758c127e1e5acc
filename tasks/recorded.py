"""Whether MLflow's own database holds a report: asked of the file, for MLflow takes seconds to import."""

import os
import sqlite3
from contextlib import closing

from tasks.sqlite_urls import file_of

REPORT_KEY = "ssl_backdoor.report_key"
"""The tag of a report's parent run."""
_ASKED = """
    select 1 from tags join runs using (run_uuid)
    where tags.key = ? and tags.value = ? and runs.status = 'FINISHED' and runs.lifecycle_stage = 'active'
"""


def is_recorded(report_key: str) -> bool:
    """Whether the report is known to be there whole; False also where a server would have to be asked."""
    file = file_of(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if file is None or not file.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(_ASKED, (REPORT_KEY, report_key)).fetchone() is not None
    except sqlite3.Error:
        return False
