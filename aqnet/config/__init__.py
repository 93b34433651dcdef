"""The configuration: YAML in, frozen dataclasses out, and what they must not hold."""

from aqnet.config.batches import accumulation
from aqnet.config.channels import POLLUTANTS, STATIC_VARIABLES, Channel, channel, lowest
from aqnet.config.continuation import changes_forbidden_on_continuation
from aqnet.config.keys import (
    Config,
    Data,
    Model,
    Plan,
    Report,
    Source,
    Split,
    Terrain,
    Train,
    Validation,
)
from aqnet.config.loading import from_checkpoint, from_dict, load, to_yaml
from aqnet.config.reading import overridden, to_dict
from aqnet.config.volume import item_bytes
