"""Cut the input of an exported forecast from training stores, as run_exported.py reads it:
input_of_store.py MODEL.pt2 STORES TIME INPUT.npz

TIME is UTC, such as 2018-05-05T21. Earlier hours and weather to come (u@+12h) are found as well,
means of days (pm25@mean7d) are not. Needs torch, zarr and numpy.
"""

import json
import sys

import numpy as np
import torch
import zarr

model_path, stores, time, output = sys.argv[1:]
described = {"aqnet.json": ""}
torch.export.load(model_path, extra_files=described)
hour = int(np.datetime64(time, "h").astype(int))


def field(name: str) -> np.ndarray:
    """One input [H, W] in the units of the store."""
    variable, _, offset = name.partition("@")
    at = hour + int(offset.removesuffix("h") or 0)
    year = np.datetime64(at, "h").astype("datetime64[Y]")
    store = zarr.open_group(f"{stores}/{year}.zarr", mode="r")
    if variable in store.attrs["static_names"]:
        return store["static"][store.attrs["static_names"].index(variable)]
    kind = "air" if variable in store.attrs["air"] else "weather"
    (row,) = np.flatnonzero(store["time"][:] == at)  # an error where the hour does not exist
    return store[kind][row, store.attrs[kind].index(variable)]


variables = json.loads(described["aqnet.json"])["variables"]
np.savez(output, fields=np.stack([field(name) for name in variables])[None], time=[hour])
