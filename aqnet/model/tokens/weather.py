"""Weather to come: what it adds to a token, and which pass may see it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aqnet.config import Channel
from aqnet.model.tokens.embedding import patch_pixels


class WeatherToCome(nn.Module):
    """The patch embedding of weather after the input time, and where it must not be seen.

    `embed` takes all hours of a patch at once, with the share of cells that each is known in. Among
    the variables that one query aggregates, these many channels would each have little weight: on
    the Beijing stations such a model took nearly twice the steps to learn from them.
    """

    channels: Tensor
    others: Tensor
    hours: Tensor

    def __init__(self, channels: Sequence[Channel], dropout: float, patch: int, dim: int) -> None:
        """Of the inputs `channels`; `dropout` is the share of samples that train without it."""
        super().__init__()
        self.dropout, self.patch = dropout, patch
        hours = torch.tensor([max(channel.hours, 0) for channel in channels])
        buffers = {"channels": (hours > 0).nonzero()[:, 0], "others": (hours == 0).nonzero()[:, 0]}
        buffers["hours"] = hours[buffers["channels"]]
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)
        self.embed = nn.Linear(len(self.channels) * (patch**2 + 1), dim)

    def forward(self, fields: Tensor) -> Tensor:
        """Fields [B, V, H, W], in training without any weather to come in some samples, so that one
        model forecasts with and without it."""
        if not self.training or self.dropout == 0.0:
            return fields
        without = torch.rand(fields.shape[0], 1, 1, 1, device=fields.device) < self.dropout
        later = fields.index_select(1, self.channels).masked_fill(without, float("nan"))
        return fields.index_copy(1, self.channels, later)

    def embedded(self, fields: Tensor, tokens: Tensor, lead_time: Tensor | None) -> Tensor:
        """What it adds to `tokens`, numbers of patches of the fields [B, V, H, W]; shape [B, L, D].

        Args:
            lead_time: [B, K], of passes that each see the weather up to their own lead time: the
                shape is [B * K, L, D] then. None: all of it is seen.
        """
        later = fields.index_select(1, self.channels)
        if lead_time is not None:
            beyond = (self.hours > lead_time.unsqueeze(-1)).flatten(0, 1)[..., None, None]
            later = later.repeat_interleave(lead_time.shape[1], dim=0)
            later = later.masked_fill(beyond, float("nan"))
        pixels = patch_pixels(later, self.patch).index_select(1, tokens)
        known = pixels.isfinite().to(pixels.dtype).mean(dim=3)
        pixels = pixels.nan_to_num(0.0).flatten(2)
        result: Tensor = self.embed(torch.cat([pixels, known], dim=2))
        return result
