"""A small double-precision model, batches with unequal masks, and a config for both."""

import torch
from torch import Tensor, nn

from aqnet.batch import Batch, Forecast
from aqnet.config import Config, from_dict

SHAPE = (2, 3, 4, 5)  # K, T, H, W
LEVELS = (0.25, 0.75)


class Toy(nn.Module):
    """Two variables to K x T targets, cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 7)
        self.second = nn.Linear(7, SHAPE[0] * SHAPE[1])

    def forward(self, fields: Tensor, time: Tensor, lead_time: Tensor) -> Tensor:
        cells = fields.nan_to_num().permute(0, 2, 3, 1)
        out = self.second(torch.tanh(self.first(cells)))
        return out.permute(0, 3, 1, 2).unflatten(1, SHAPE[:2])


class ToyOdds(Toy):
    """The same with quantiles of LEVELS at every other cell."""

    def __init__(self) -> None:
        super().__init__()
        self.quantile_head = nn.Linear(7, len(LEVELS))

    def forward(self, fields: Tensor, time: Tensor, lead_time: Tensor) -> Forecast:
        mean = super().forward(fields, time, lead_time)
        tokens = torch.tanh(self.first(fields.nan_to_num().permute(0, 2, 3, 1))).detach()
        errors = self.quantile_head(tokens).permute(0, 3, 1, 2)[:, :, None, None]
        cells = torch.arange(0, SHAPE[2] * SHAPE[3], 2)
        quantiles = (mean.detach().unsqueeze(1) + errors).flatten(-2)
        return Forecast(mean, quantiles.index_select(-1, cells), cells)


def config(**train: object) -> Config:
    split = {"train": [2015], "validation": [2016], "test": [2017]}
    data = {
        "stores": "nowhere",
        "variables": ["pm25", "so2"],
        "targets": ["pm25", "so2", "co"],
        "lead_times": [12, 24],
        "split": split,
    }
    model = {
        "scan": "raster",
        "transport": "off",
        "terrain": {"enabled": False},
        "predict": "value",
        "quantiles": list(LEVELS),  # which Toy has not, and ToyOdds has
    }
    settings = {"max_steps": 5, "clip_norm": 1e9, "target_weights": {"co": 3.0}, **train}
    return from_dict({"run_dir": "none", "data": data, "model": model, "train": settings}, "toy")


def item(number: int, poison: bool = False) -> Batch:
    """Item with a share of valid cells of its own; -1 is empty."""
    generator = torch.Generator().manual_seed(number + 100)
    fields = torch.randn(2, *SHAPE[2:], generator=generator, dtype=torch.float64)
    targets = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    mask = torch.rand(SHAPE, generator=generator) < 0.1 * (number + 1)
    targets[~mask] = torch.nan
    if poison:
        fields[0, 0, 0] = torch.inf
        targets[mask] = torch.inf
    return Batch(fields, torch.tensor(number), torch.tensor([12, 24]), targets, mask)


def batch_of(numbers: list[int], poison: int | None = None) -> Batch:
    parts = [item(number, number == poison) for number in numbers]
    return Batch(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))
