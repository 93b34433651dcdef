"""ClimaX (Nguyen et al. 2023, arXiv 2301.10343) with transport along the wind, wind scan, terrain
and change prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqnet.batch import Forecast, Statistics
from aqnet.config import Channel, Config, Model
from aqnet.errors import AqnetError
from aqnet.grid import Grid
from aqnet.model.attention.bias import Places
from aqnet.model.block import Block, Blocks, has_terrain, initialise, zero_linear
from aqnet.model.quantiles import QuantileHead, a_few, stretched
from aqnet.model.tokens.calendar import calendar_features, calendar_size
from aqnet.model.tokens.embedding import TokenEmbeds, VariableAggregation, patch_pixels
from aqnet.model.tokens.positions import (
    Patches,
    cells_of,
    fraction_features,
    patches_of,
    sincos_1d,
    sincos_2d,
)
from aqnet.model.tokens.weather import WeatherToCome
from aqnet.model.tokens.wind_scan import WindScan
from aqnet.model.transport import Brought, Transport, along_wind, moves_fields
from aqnet.model.weights.compatibility import bias_block, has_biased_block

LEAD_TIME_UNIT = 100.0  # hours, ClimaX's
SCAN_FEATURES = 64


class ClimaX(nn.Module):
    """Forecasts of K lead times from one input time.

    Attention does not see order, but terrain attention wants tokens sorted by elevation. So with
    global attention tokens stand in that order from the embedding to the head (in raster order
    without terrain), and the scan acts through its embedding alone. With windows they start in
    raster order, are put in scan order, by row and quarter turn in turn and by elevation inside
    each window, and back at the end.

    Raises:
        AqnetError: at construction where config, grid and model do not fit together.
    """

    tokens: Tensor
    lat: Tensor
    lon: Tensor
    elevation_km: Tensor
    lead_times: Tensor
    target_channels: Tensor
    recent_channels: Tensor
    wind_channels: Tensor
    wind_mean: Tensor
    wind_std: Tensor
    stretch: Tensor
    token_cells: Tensor

    def __init__(self, config: Config, grid: Grid, statistics: Statistics) -> None:
        super().__init__()
        model = config.model
        _check(model, grid)
        self.model, self.grid_shape = model, grid.shape
        self.variables, self.targets = config.data.variables, config.data.targets
        self.joint = model.lead_time_mode == "joint"
        self.sees_weather = bool(config.data.weather)
        self.starts_recent = bool(config.data.recent_days) and model.predict == "change"
        self.lead_time_unit = lead_time_unit(model)
        self._make_buffers(config, grid, statistics)
        self._make_parameters(config, len(config.token_variables))

    def _make_buffers(self, config: Config, grid: Grid, statistics: Statistics) -> None:
        patches = patches_of(grid, self.model.patch)
        self.patch_shape = patches.shape
        tokens = self._choose_tokens(patches)
        self.scan = WindScan(patches, tokens, self.model.regions)
        if self.model.terrain.enabled and self.model.attention == "window":
            self.scan.sort_windows(patches.elevation_km[tokens], self.model.window)
        if self.model.transport != "off":
            self.transport = Transport(config, grid, patches, tokens)
        if config.data.weather:
            size, dropout = (self.model.patch, self.model.embed_dim), config.train.weather_dropout
            self.weather = WeatherToCome(config.input_channels, dropout, *size)
        buffers = {
            "tokens": tokens,
            "lat": patches.lat[tokens],
            "lon": patches.lon[tokens],
            "elevation_km": patches.elevation_km[tokens],
            "lead_times": torch.tensor(config.data.lead_times),
        }
        if self.model.predict == "change" or moves_fields(self.model):
            channels = [self.variables.index(name) for name in self.targets]
            buffers["target_channels"] = torch.tensor(channels)
        if self.starts_recent:
            buffers["recent_channels"] = torch.tensor(config.recent_channels)
        if self.model.scan == "wind" or self.model.transport != "off":
            mean, std = statistics.of(("u", "v"))
            hours, inputs = config.wind_hours, config.input_channels
            rows = [[inputs.index(Channel(name, hour)) for hour in hours] for name in ("u", "v")]
            buffers |= {"wind_channels": torch.tensor(rows)}
            buffers |= {"wind_mean": mean.float(), "wind_std": std.float()}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _choose_tokens(self, patches: Patches) -> Tensor:
        """Patches that are tokens, int64 [L], by elevation where all attend to all with terrain."""
        every = torch.arange(patches.domain.shape[0])
        tokens = every[patches.domain] if self.model.tokens == "domain" else every
        if self.model.terrain.enabled and self.model.attention == "global":
            tokens = tokens[patches.elevation_km[tokens].argsort(stable=True)]
        return tokens

    def _make_parameters(self, config: Config, num_variables: int) -> None:
        model, dim = self.model, self.model.embed_dim
        num_leads = len(config.data.lead_times)
        self.token_embeds = TokenEmbeds(num_variables, dim, model.patch)
        self.var_embed = nn.Parameter(sincos_1d(torch.arange(num_variables).float(), dim)[None])
        self.var_query = nn.Parameter(torch.zeros(1, 1, dim))
        self.var_agg = VariableAggregation(dim, model.num_heads)
        self.pos_embed = nn.Parameter(sincos_2d(*self.patch_shape, dim))
        self.pos_drop = nn.Dropout(model.drop_rate)
        if not self.joint:
            self.lead_time_embed = nn.Linear(1, dim)
        rates = torch.linspace(0.0, model.drop_path, model.depth).tolist()
        paths = config.data.lead_times if along_wind(model) else ()
        self.blocks = Blocks(
            model,
            [
                Block(model, rate, has_terrain(model, number), paths)
                for number, rate in enumerate(rates)
            ],
        )
        if has_biased_block(model):
            bias_block(self.blocks[0], model, self.patch_shape)
        self.norm = nn.LayerNorm(dim)
        outputs = model.patch**2 * (num_leads if self.joint else 1) * len(self.targets)
        layers: list[nn.Module] = []
        for _ in range(model.decoder_depth):
            layers += [nn.Linear(dim, dim), nn.GELU()]
        self.head = nn.Sequential(*layers, nn.Linear(dim, outputs))
        self.apply(initialise)
        self._make_additions(num_leads)
        if model.quantiles:  # last, so that everything else starts as without
            self.quantile_head = QuantileHead(dim, outputs, model.quantiles)
            stretch = torch.zeros(len(model.quantiles), num_leads, len(self.targets))
            self.register_buffer("stretch", stretch)
            cells = cells_of(self.tokens, self.patch_shape, model.patch, self.grid_shape)
            self.register_buffer("token_cells", cells, persistent=False)

    def _make_additions(self, num_leads: int) -> None:
        """What starts without effect: scan and calendar embeddings, and the head on a change."""
        dim = self.model.embed_dim
        if self.model.scan_embedding:
            self.scan_embed = zero_linear(SCAN_FEATURES, dim)
        if self.model.calendar != "off":
            size = calendar_size(self.model.calendar, num_leads if self.joint else 1)
            self.calendar_embed = zero_linear(size, dim)
        if self.model.predict == "change":
            self.rho = nn.Parameter(torch.zeros(num_leads, len(self.targets)))
            if self.starts_recent:
                days = self.recent_channels.shape[0]
                self.recent_rho = nn.Parameter(torch.zeros(days, num_leads, len(self.targets)))
            for parameter in self.head[-1].parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def start_from(
        self,
        rho: Tensor,
        there: Tensor | None = None,
        recent: Tensor | None = None,
        speed: float = 1.0,
        turn: float = 0.0,
    ) -> None:
        """Start from damped persistence, here, where the air comes from and of the last days; what
        of this the model does not have is not looked at.

        Args:
            rho: correlation of a target with its value in the same cell at the input time, [K, T].
            there: with its value where the air comes from at that time, [K, T].
            recent: with its means over the last days, less the value, [days, K, T].
            speed, turn: what moves the air, as in `Transport`.
        Raises:
            AqnetError: a shape is another.
        """
        if self.model.predict == "change":
            _set_rho(self.rho, rho)
        if self.starts_recent and recent is not None:
            _set_rho(self.recent_rho, recent)
        if self.model.transport != "off":
            self.transport.speed.fill_(speed)
            self.transport.turn.fill_(turn)
            if self.transport.rho is not None and there is not None:
                _set_rho(self.transport.rho, there)

    def check_lead_time(self, lead_time: Tensor) -> None:
        """Refuse lead times [B, K] that this model was not made for (waits for the device).

        Raises:
            AqnetError: an hour is not in data.lead_times, or a joint model is asked for others.
        """
        known = self.lead_times.tolist()
        for row in lead_time.tolist():
            if self.joint and row != known:
                raise AqnetError(
                    f"lead_time {row}: a joint model forecasts data.lead_times {known} together; "
                    "ask for these, or train with model.lead_time_mode: conditioned"
                )
            unknown = sorted(set(row) - set(known))
            if unknown:
                raise AqnetError(f"lead_time {unknown} h not in data.lead_times {known}")

    def forward(self, fields: Tensor, time: Tensor, lead_time: Tensor) -> Tensor | Forecast:
        """Forecast the targets.

        Lead times are checked here on a CPU. Elsewhere, and compiled, that would make the host
        wait: there, unknown ones give NaN, and `check_lead_time` is for the caller.

        Args:
            fields: normalised, NaN where missing, shape [B, V, H, W].
            time: input time, hours since 1970 UTC, int64, shape [B].
            lead_time: hours, int64, shape [B, K].
        Returns:
            Normalised, shape [B, K, T, H, W], NaN outside the model's tokens; with
            `model.quantiles` a Forecast, whose quantiles are stretched in evaluation mode only.
        """
        if lead_time.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_lead_time(lead_time)
        batch, num_leads = lead_time.shape
        if self.sees_weather:
            fields = self.weather(fields)
        matches = lead_time.unsqueeze(-1) == self.lead_times
        height, width = self.grid_shape
        brought = self.bring(fields, matches.int().argmax(dim=-1))
        patch = self.model.patch
        padded = F.pad(fields, (0, -width % patch, 0, -height % patch), value=float("nan"))
        sector = self._sectors(padded)
        x = self._embed(padded, sector)
        x = self._add_times(x, time, lead_time)
        if self.sees_weather:
            passes_of = None if self.joint else lead_time
            x = x + self.weather.embedded(padded, self.tokens, passes_of)
        if brought.targets is not None:
            x = x + self.transport.embedded(brought.targets)
        passes = x.shape[0] // batch
        places = self._places(padded, brought, passes)
        sector = sector.repeat_interleave(passes, dim=0)
        x = self.blocks(self.pos_drop(x), places, self.scan, sector)
        x = self.norm(x)
        forecast = self._to_fields(self.head(x).to(fields.dtype), batch, num_leads)[0]
        forecast = forecast[..., :height, :width]
        if self.model.predict == "change":
            with torch.autocast(fields.device.type, enabled=False):
                forecast = forecast + self._change(fields, brought.targets, matches)
        known = matches.any(dim=-1)
        if self.joint:
            known = (lead_time == self.lead_times).all(dim=-1, keepdim=True)
        mean = forecast.masked_fill(~known[..., None, None, None], float("nan"))
        # no gradient leads back: the mean is that of a model without quantiles
        return self._with_quantiles(mean, x.detach()) if self.model.quantiles else mean

    def _with_quantiles(self, mean: Tensor, x: Tensor) -> Forecast:
        """The mean forecast [B, K, T, H, W] with quantiles from tokens [N, L, D]; while training
        at the cells of a few tokens."""
        batch, num_leads, targets, height, width = mean.shape
        start = mean.detach()
        if not self.training:
            errors = self.quantile_head(x).flatten(2).to(mean.dtype)
            fields = self._to_fields(errors, batch, num_leads).movedim(0, 1)
            quantiles = start.unsqueeze(1) + fields[..., :height, :width]
            return Forecast(mean, stretched(quantiles, self.stretch))
        some = a_few(x.shape[1], x.device)
        cells = self.token_cells.index_select(0, some).flatten()
        errors = self.quantile_head(x.index_select(1, some)).to(mean.dtype)
        errors = errors.unflatten(2, (-1, num_leads if self.joint else 1, targets))
        errors = errors.permute(5, 0, 3, 4, 1, 2).reshape(-1, batch, num_leads, targets, len(cells))
        start = start.flatten(-2).index_select(-1, cells)
        return Forecast(mean, (start + errors).movedim(0, 1), cells)

    def bring(self, fields: Tensor, own: Tensor) -> Brought:
        """What the air brings to the lead times numbered `own` [B, K]."""
        if self.model.transport == "off":
            return Brought()
        moving = None
        if moves_fields(self.model):
            moving = fields.index_select(1, self.target_channels)
        u, v = self._wind(fields, self.wind_channels)
        brought: Brought = self.transport(u, v, moving, own)
        return brought

    def _change(self, fields: Tensor, moved: Tensor | None, matches: Tensor) -> Tensor:
        """What a head that says nothing forecasts, shape [B, K, T, H, W]."""
        own = matches.to(fields.dtype).unsqueeze(-1)
        start = fields.index_select(1, self.target_channels).nan_to_num(0.0)
        change = (own * self.rho).sum(dim=2)[..., None, None] * start.unsqueeze(1)
        if self.starts_recent:
            recent = fields.index_select(1, self.recent_channels.flatten()).nan_to_num(0.0)
            recent = recent.unflatten(1, self.recent_channels.shape)
            rho = torch.einsum("bkl,nlt->bknt", matches.to(fields.dtype), self.recent_rho)
            change = change + torch.einsum("bknt,bnthw->bkthw", rho, recent)
        if moved is not None:
            assert self.transport.rho is not None
            rho = (own * self.transport.rho).sum(dim=2)
            brought = moved.where(moved.isfinite(), start.unsqueeze(1))
            change = change + rho[..., None, None] * brought
        return change

    def _wind(self, fields: Tensor, channels: Tensor) -> tuple[Tensor, ...]:
        """Eastward and northward wind in m/s, [B, N, H, W] each, of channels [2, N]."""
        wind = fields.index_select(1, channels.flatten()).unflatten(1, channels.shape)
        std, mean = (part.view(2, 1, 1, 1) for part in (self.wind_std, self.wind_mean))
        return (wind * std + mean).unbind(1)

    def _sectors(self, fields: Tensor) -> Tensor:
        """Sector of each sample (and region), int64, [B, R * C]."""
        if self.model.scan == "raster":
            return self.scan.calm(fields.shape[0])
        u, v = self._wind(fields, self.wind_channels[:, :1])
        return self.scan.sectors(u[:, 0], v[:, 0])

    def _embed(self, fields: Tensor, sector: Tensor) -> Tensor:
        """Fields [B, V, H, W] to tokens [B, L, D] with position and scan, but without weather to
        come; the passes of a conditioned model share them."""
        if self.sees_weather:
            fields = fields.index_select(1, self.weather.others)
        pixels = patch_pixels(fields, self.model.patch).index_select(1, self.tokens)
        present = None
        if self.model.missing == "ignore":
            present = ~pixels.isnan().all(dim=-1)
        affine = self.token_embeds.affine(self.var_embed)
        x: Tensor = self.var_agg(pixels.nan_to_num(0.0), present, affine, self.var_query)
        x = x + self.pos_embed.index_select(1, self.tokens)
        if self.model.scan_embedding:
            x = x + self._scan_embedding(sector, x.dtype)
        return x

    def _scan_embedding(self, sector: Tensor, dtype: torch.dtype) -> Tensor:
        """Sector [B, R * C] to [B, L, D]."""
        features = fraction_features(self.scan.fractions(sector), SCAN_FEATURES)
        result: Tensor = self.scan_embed(features.to(dtype))
        return result

    def _add_times(self, x: Tensor, time: Tensor, lead_time: Tensor) -> Tensor:
        """Calendar and lead time; conditioned: [B * K, L, D]."""
        target_time = time.unsqueeze(1) + lead_time
        if not self.joint:
            num_leads = lead_time.shape[1]
            hours = lead_time.reshape(-1, 1, 1).to(x.dtype) / self.lead_time_unit
            x = x.repeat_interleave(num_leads, dim=0)
            x = x + self.lead_time_embed(hours)
            time, target_time = time.repeat_interleave(num_leads), target_time.reshape(-1, 1)
        if self.model.calendar == "off":
            return x
        calendar = calendar_features(self.model.calendar, time, target_time, self.lat, self.lon)
        result: Tensor = x + self.calendar_embed(calendar.to(x.dtype))
        return result

    def _places(self, fields: Tensor, brought: Brought, passes: int) -> Places:
        """What attention sees of where tokens are; in AQ_NET2's blocks the elevation is the mean
        of the input's patches, normalised."""
        position = None if brought.displacement is None else self.transport.position.unsqueeze(0)
        elevation = self.elevation_km.unsqueeze(0)
        if has_biased_block(self.model):
            channel = self.variables.index("elevation")
            pixels = patch_pixels(
                fields[:, channel : channel + 1].nan_to_num(0.0), self.model.patch
            )
            elevation = pixels.mean(dim=(2, 3)).repeat_interleave(passes, dim=0)
        return Places(elevation, position, brought.displacement)

    def _to_fields(self, x: Tensor, batch: int, num_leads: int) -> Tensor:
        """Numbers of tokens, laid out (row, column, lead time, target, kind), as fields of each
        kind, [kinds, B, K, T, h * p, w * p]."""
        (rows, columns), patch, targets = self.patch_shape, self.model.patch, len(self.targets)
        everywhere = x.new_full((x.shape[0], rows * columns, x.shape[2]), float("nan"))
        x = everywhere.index_copy(1, self.tokens, x)
        own = num_leads if self.joint else 1
        x = x.reshape(x.shape[0], rows, columns, patch, patch, own, targets, -1)
        x = x.permute(7, 0, 5, 6, 1, 3, 2, 4)
        return x.reshape(-1, batch, num_leads, targets, rows * patch, columns * patch)


def _set_rho(parameter: Tensor, rho: Tensor) -> None:
    if rho.shape != parameter.shape:
        expected, found = list(parameter.shape), list(rho.shape)
        raise AqnetError(f"rho: expected shape {expected} (lead times, targets), found {found}")
    parameter.copy_(rho)


def lead_time_unit(model: Model) -> float:
    """Hours that `lead_time_embed` is fed with as 1."""
    return LEAD_TIME_UNIT if model.compatibility == "none" else 1.0


def _check(model: Model, grid: Grid) -> None:
    if model.embed_dim % 4:
        raise AqnetError(f"model.embed_dim {model.embed_dim} must be a multiple of 4")
    if model.terrain.enabled and grid.elevation is None:
        raise AqnetError(
            "model.terrain.enabled is true, but the store has no elevation; set it to false"
        )
