"""What every part of a configuration has in common."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
