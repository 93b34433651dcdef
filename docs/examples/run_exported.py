"""Run an exported forecast without aqnet: run_exported.py MODEL.pt2 INPUT.npz FORECAST.npz

INPUT.npz holds `fields` [B, V, H, W] in physical units (NaN = missing; the order of the variables
is in the file) and `time` [B], hours since 1970-01-01 00:00 UTC. Needs torch and numpy.
"""

import json
import sys

import numpy as np
import torch

model_path, input_path, output_path = sys.argv[1:]
described = {"aqnet.json": ""}
forecast = torch.export.load(model_path, extra_files=described).module()
facts = json.loads(described["aqnet.json"])
print("variables:", *facts["variables"])
given = np.load(input_path)
fields, time = torch.from_numpy(given["fields"]).float(), torch.from_numpy(given["time"]).long()
lead_time = torch.tensor(facts["lead_times"]).repeat(len(time), 1)
with torch.no_grad():
    values = forecast(fields, time, lead_time)  # [B, lead time, target, H, W]
found = {"forecast": values}
if facts["quantiles"]:  # then [B, quantile, lead time, target, H, W] comes with it
    found = dict(zip(("forecast", "quantiles"), values, strict=True))
print("forecast of", *facts["targets"], "in", *facts["lead_times"], "hours")
np.savez(output_path, lat=facts["lat"], lon=facts["lon"], **found)
