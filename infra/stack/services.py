"""What runs, in dependency order."""

from infra.stack import object_store, postgres, ray_head, web
from infra.stack.service import Service

SERVICES: tuple[Service, ...] = (
    postgres.SERVICE,
    object_store.SERVICE,
    ray_head.SERVICE,
    web.PREFECT,
    web.MLFLOW,
    web.WORKER,
)
