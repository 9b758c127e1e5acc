"""What every spec is."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Stage = Literal["ingest", "poison", "filter", "train", "tamper", "defend", "detect", "evaluate", "report"]
"""In the order of the pipeline; defend is the repair of an encoder, as it is called in keys."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


PLAIN_TEXT = {"pattern": r"^[^\u0000\ud800-\udfff]*$"}
"""JSON schema of text that a database can keep: no zero character, no half of a surrogate pair."""


def _as_a_form(schema: dict[str, Any]) -> None:
    """For Prefect's parameter form, which sorts by ``position`` and lets one choose among ``anyOf`` alone."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position
        for one in (field, field.get("items")):
            if isinstance(one, dict) and one.get("type") == "string" and not one.keys() & {"pattern", "enum", "const"}:
                one |= PLAIN_TEXT
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
