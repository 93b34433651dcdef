"""What the clock and the sun say at a place: the calendar's numbers of a token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# mean tropical year, 365.2422 days, in ten-thousandths of an hour, so that the phase is exact
_YEAR = 87_658_128
# obliquity of the ecliptic, and days from the December solstice to 1 January
_OBLIQUITY = math.radians(23.44)
_SOLSTICE_DAYS = 10.0


def calendar_size(mode: str, num_targets: int) -> int:
    """How many numbers `calendar_features` gives for `num_targets` target times."""
    return 3 + 3 * num_targets + (2 if mode == "day_and_year" else 0)


def calendar_features(
    mode: str, time: Tensor, target_time: Tensor, lat: Tensor, lon: Tensor
) -> Tensor:
    """Sun and clock at the input time and at each target time, per token.

    Args:
        mode: `day`, or `day_and_year` which adds sine and cosine of the input time's day of year.
        time: hours since 1970 UTC, int64, shape [N].
        target_time: likewise, shape [N, M].
        lat, lon: degrees, shape [L].
    Returns:
        Shape [N, L, 3 + 3 M (+ 2)]: sine and cosine of the local solar hour, cosine of the solar
        zenith angle; then the same three for each target time.
    """
    times = torch.cat([time.unsqueeze(1), target_time], dim=1)
    sun = _sun(times, lat, lon)
    features = sun.permute(0, 2, 1, 3).flatten(2)
    if mode != "day_and_year":
        return features
    phase = _year_phase(time, lat.dtype)
    year = torch.stack([phase.sin(), phase.cos()], dim=-1)
    return torch.cat([features, year.unsqueeze(1).expand(-1, lat.shape[0], -1)], dim=-1)


def _sun(time: Tensor, lat: Tensor, lon: Tensor) -> Tensor:
    """[N, M] hours -> [N, M, L, 3]; mean solar time, without the equation of time."""
    hour = torch.remainder(time, 24).to(lat.dtype).unsqueeze(-1) + lon / 15.0
    angle = hour * (math.pi / 12.0)
    lag = 2.0 * math.pi * _SOLSTICE_DAYS / 365.2422
    declination = -_OBLIQUITY * torch.cos(_year_phase(time, lat.dtype) + lag).unsqueeze(-1)
    latitude = torch.deg2rad(lat)
    # the hour angle counts from noon, where the cosine of the solar hour is -1
    zenith = latitude.sin() * declination.sin() - latitude.cos() * declination.cos() * angle.cos()
    return torch.stack([angle.sin(), angle.cos(), zenith], dim=-1)


def _year_phase(time: Tensor, dtype: torch.dtype) -> Tensor:
    """Radians since the start of 1970, a turn per tropical year: within a day of the calendar."""
    return torch.remainder(time * 10_000, _YEAR).to(dtype) * (2.0 * math.pi / _YEAR)
