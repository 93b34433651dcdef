"""Cut the input of an exported forecast from training stores, as run_exported.py reads it:
input_of_store.py MODEL.pt2 STORES TIME INPUT.npz

TIME is UTC, such as 2018-05-05T21. Earlier hours (u@-6h), weather to come (u@+12h) and means of the
last days (pm25@mean7d, the mean less the value of that time) are found as well. Needs torch, zarr
and numpy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import zarr

model_path, folder, time, output = sys.argv[1:]
described = {"aqnet.json": ""}
torch.export.load(model_path, extra_files=described)
hour = int(np.datetime64(time, "h").astype(int))
stores = [zarr.open_group(path, mode="r") for path in sorted(Path(folder).glob("[0-9]*.zarr"))]
rows = {int(at): (store, row) for store in stores for row, at in enumerate(store["time"][:])}


def field(name: str) -> np.ndarray:
    """One input [H, W] in the units of the store."""
    variable, _, which = name.partition("@")
    if which.startswith("mean"):
        days = int(which.removeprefix("mean").removesuffix("d"))
        return mean_of_days(variable, days) - at_hour(variable, hour)
    return at_hour(variable, hour + int(which.removesuffix("h") or 0))


def at_hour(variable: str, at: int) -> np.ndarray:
    """The field of an hour since 1970, NaN where it is missing."""
    static = stores[0].attrs["static_names"]
    if variable in static:
        return stores[0]["static"][static.index(variable)]
    kind = "air" if variable in stores[0].attrs["air"] else "weather"
    store, row = rows[at]  # an error where the hour does not exist
    return store[kind][row, store.attrs[kind].index(variable)]


def mean_of_days(variable: str, days: int) -> np.ndarray:
    """Mean over so many whole days before that of TIME; NaN where half of them lie before the
    stores begin."""
    end = hour // 24
    channel = stores[0].attrs["air"].index(variable)
    total, count = (sum_of_days(name, channel, end, days) for name in ("daily_sum", "daily_count"))
    known = (count > 0) & (2 * (end - stores[0]["day"][0]) >= days)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=known)


def sum_of_days(name: str, channel: int, end: int, days: int) -> np.ndarray:
    """Sum over so many days before the day `end` since 1970."""
    result = np.zeros(stores[0]["mask"].shape, np.float32)
    for store in stores:  # sums run from the beginning of each
        first, last = store["day"][0], store["day"][-1]
        for day, sign in ((end, 1), (end - days, -1)):
            row = min(day - 1, last) - first
            if row >= 0:
                result += sign * store[name][row, channel].astype(np.float32)
    return result


variables = json.loads(described["aqnet.json"])["variables"]
np.savez(output, fields=np.stack([field(name) for name in variables])[None], time=[hour])
