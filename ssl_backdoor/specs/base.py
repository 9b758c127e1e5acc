"""What every spec is."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["ingest", "poison", "train", "defend", "evaluate", "report"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _declaration_order(schema: dict[str, Any]) -> None:
    """Prefect's parameter form sorts fields by ``position``; keep the order of the source."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Spec(BaseModel):
    """A statement of what is computed: immutable, closed, comparable by value."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra=_declaration_order,
        use_attribute_docstrings=True,
    )
