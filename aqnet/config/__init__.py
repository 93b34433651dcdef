"""The configuration: YAML in, frozen dataclasses out, and what they must not hold."""

from aqnet.config.batches import accumulation
from aqnet.config.continuation import changes_forbidden_on_continuation
from aqnet.config.keys import (
    STATIC_VARIABLES,
    Config,
    Data,
    Model,
    Plan,
    Source,
    Split,
    Terrain,
    Train,
    Validation,
)
from aqnet.config.loading import from_checkpoint, from_dict, load, to_yaml
from aqnet.config.reading import overridden, to_dict

__all__ = [
    "STATIC_VARIABLES",
    "Config",
    "Data",
    "Model",
    "Plan",
    "Source",
    "Split",
    "Terrain",
    "Train",
    "Validation",
    "accumulation",
    "changes_forbidden_on_continuation",
    "from_checkpoint",
    "from_dict",
    "load",
    "overridden",
    "to_dict",
    "to_yaml",
]
