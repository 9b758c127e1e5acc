"""MLflow's server as this project starts it: for its own pages and whoever has the password.

    mlflow server --app-name ssl-backdoor --host 127.0.0.1 --port 5000 ...

``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD`` are the login, here as for clients; a browser asks for it.
``MLFLOW_SERVER_ALLOWED_HOSTS`` lists the addresses that clients know it by, such as ``127.0.0.1:5000``.
"""

import os

from mlflow.server.fastapi_app import app as _mlflow

from ssl_backdoor.errors import UserError
from tasks.guard import Guard

_NEEDED = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_SERVER_ALLOWED_HOSTS")


def _setting(name: str) -> str:
    if value := os.environ.get(name):
        return value
    raise UserError(f"MLflow's server needs {', '.join(_NEEDED)}; {name} is empty or unset")


_user, _password, _hosts = map(_setting, _NEEDED)
app = Guard(_mlflow, _hosts.split(","), f"{_user}:{_password}", public=("/health",))
"""What uvicorn serves."""
