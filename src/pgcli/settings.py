"""The base of every config model. Types, bounds and help live in the models; values live in `conf/`, and only there."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen and strict about names: a key that no model declares is refused, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
