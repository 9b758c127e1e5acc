"""What every spec is."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["ingest", "poison", "train", "defend", "evaluate", "report"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _as_a_form(schema: dict[str, Any]) -> None:
    """For Prefect's parameter form, which sorts by ``position`` and lets one choose among ``anyOf`` alone."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        if "oneOf" in field:
            field["anyOf"] = field.pop("oneOf")
            field.pop("discriminator", None)


class Spec(BaseModel):
    """A statement of what is computed: immutable, closed, comparable by value."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra=_as_a_form,
        use_attribute_docstrings=True,
    )
