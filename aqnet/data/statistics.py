"""Mean and standard deviation of each variable over the training years and the domain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aqnet.batch import Statistics
from aqnet.config import STATIC_VARIABLES, Config, periods
from aqnet.data.moments import Moments, merged, moments
from aqnet.data.stores.store import Store
from aqnet.errors import AqnetError
from aqnet.files import replace_text, writing


def compute(config: Config, stores: Sequence[Store]) -> Statistics:
    """Merge what each hour of the training split measured over the domain when it was written.

    Raises:
        AqnetError: a variable has no value there.
    """
    names = config.data.stored
    statics = tuple(name for name in config.data.variables if name in STATIC_VARIABLES)
    training = periods.intervals(config.data.split.train)
    parts = []
    for store in stores:
        channels = [store.names.index(name) for name in names]
        wanted = [(store.time >= first) & (store.time < end) for first, end in training]
        parts.append(store.moments()[np.any(wanted, axis=0)][:, :, channels])
    total = merged(np.concatenate(parts))
    if statics:
        mask = stores[0].grid.mask.numpy()
        fields = np.stack([stores[0].static[name][mask] for name in statics])
        total = np.concatenate((total, moments(fields)), axis=1)
    return _statistics((*names, *statics), total, config.data.stores)


def write(config: Config, stores: Sequence[Store]) -> Path:
    """Compute the statistics and write them with what they were made from; returns the file."""
    content = {
        "statistics": compute(config, stores).to_dict(),
        "train": list(config.data.split.train),
        "stores": {store.path.name: store.checksum for store in stores},
    }
    path = Path(config.data.stores) / "statistics.json"
    text = json.dumps(content, indent=1)
    with writing(path):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)
    return path


def read(config: Config, stores: Sequence[Store]) -> Statistics:
    """The statistics beside the stores.

    Raises:
        AqnetError: they are missing, unreadable, or made from other stores, another training
            split or other variables.
    """
    path = Path(config.data.stores) / "statistics.json"
    again = "run python -m aqnet.data.prepare again"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = Statistics.from_dict(content["statistics"])
        train, checksums = content["train"], content["stores"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AqnetError(f"{path}: cannot read the statistics ({error!r}); {again}") from None
    if train != list(config.data.split.train):
        wanted = list(config.data.split.train)
        raise AqnetError(f"{path}: made from the training split {train}, not {wanted}; {again}")
    for store in stores:
        if checksums.get(store.path.name) != store.checksum:
            raise AqnetError(f"{path}: made from another {store.path.name}; {again}")
    for name in (*config.data.variables, *config.data.stored):
        if name not in found.names:
            raise AqnetError(f"{path}: lacks the variable {name!r}; {again}")
    return found


def _statistics(names: tuple[str, ...], total: Moments, where: str) -> Statistics:
    count, mean, squares = total
    for name, number in zip(names, count, strict=True):
        if number == 0:
            raise AqnetError(f"{where}: {name!r} has no value in the domain and training split")
    std = np.sqrt(squares / count)
    std = np.where(std > 0, std, 1.0)  # a constant field is normalised to 0
    return Statistics(names, tuple(mean.tolist()), tuple(std.tolist()))
