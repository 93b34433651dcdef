"""Weather to come among the inputs: which channels it is, and which pass may see them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aqnet.config import Channel


class WeatherToCome(nn.Module):
    """Hides weather after the input time, as NaN, where it must not be seen."""

    hours: Tensor

    def __init__(self, channels: Sequence[Channel], dropout: float) -> None:
        """Of the inputs `channels`; `dropout` is the share of samples that train without it."""
        super().__init__()
        self.dropout = dropout
        hours = torch.tensor([max(channel.hours, 0) for channel in channels])
        self.register_buffer("hours", hours, persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """Fields [B, V, H, W], in training without any weather to come in some samples, so that one
        model forecasts with and without it."""
        if not self.training or self.dropout == 0.0:
            return fields
        without = torch.rand(fields.shape[0], 1, device=fields.device) < self.dropout
        return _hidden(fields, without & (self.hours > 0))

    def until(self, fields: Tensor, lead_time: Tensor) -> Tensor:
        """Fields [B, V, H, W] as a forecast of each lead time [B, K] may see them, up to then;
        shape [B * K, V, H, W]."""
        later = (self.hours > lead_time.unsqueeze(-1)).flatten(0, 1)
        return _hidden(fields.repeat_interleave(lead_time.shape[1], dim=0), later)


def _hidden(fields: Tensor, channels: Tensor) -> Tensor:
    """Without the channels [B, V] of fields [B, V, H, W]."""
    return fields.masked_fill(channels[..., None, None], float("nan"))
