"""The whole model in its plain form: nothing folded, sorted, cached or batched.

Its parameters bear the names of `aqnet.model.climax.ClimaX`, so a state dict fits both. Drop rates
do not occur: it is for comparisons without them.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqnet.batch import Statistics
from aqnet.config import Config, Model
from aqnet.grid import Grid
from tests.reference import trajectories
from tests.reference.attention import dense_attention, travel_bias
from tests.reference.embedding import aggregate
from tests.reference.wind_scan import mean_wind_sector, raster_order, regional_ranks, scan_order

SECTORS, CALM = 16, 16
SCAN_FEATURES = 64


class PlainBlock(nn.Module):
    """Pre-norm block; with a bias every score is written out, without it torch's own is used."""

    def __init__(self, model: Model, terrain: bool, hours: list[int] | None = None) -> None:
        super().__init__()
        dim, hidden = model.embed_dim, int(model.embed_dim * model.mlp_ratio)
        self.heads, self.terrain, self.hours = model.num_heads, terrain, hours
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        if terrain:
            self.attn.up = nn.Parameter(torch.zeros(model.num_heads))
            self.attn.down = nn.Parameter(torch.zeros(model.num_heads))
        if hours:
            self.attn.travel_time = nn.Parameter(torch.zeros(model.num_heads))
            self.attn.travel_width = nn.Parameter(torch.zeros(model.num_heads))
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor, z: Tensor, wind: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Tokens [N, L, D] with elevations [N, L] in km, and position and displacement of
        `travel_bias`."""
        batch, length, dim = x.shape
        q, k, v = (
            part.reshape(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attn["qkv"](self.norm1(x)).split(dim, dim=-1)
        )
        bias = up = down = None
        if wind is not None and self.hours:
            width = F.softplus(self.attn.travel_width)
            bias = travel_bias(*wind, self.hours, self.attn.travel_time, width)
        if self.terrain:
            up, down = F.softplus(self.attn.up), F.softplus(self.attn.down)
        if self.terrain or bias is not None:
            out = dense_attention(q, k, v, z if self.terrain else None, up, down, bias=bias)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.attn["proj"](out.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainClimaX(nn.Module):
    """`ClimaX` over a grid of whole patches whose rows and columns are parallels and meridians."""

    def __init__(self, config: Config, grid: Grid, statistics: Statistics) -> None:
        super().__init__()
        model, dim = config.model, config.model.embed_dim
        self.config, self.grid, self.statistics = config, grid, statistics
        self.joint = model.lead_time_mode == "joint"
        self.variables = config.data.variables
        num_leads = len(config.data.lead_times)
        later = sum(channel.to_come for channel in config.input_channels)
        num_variables = len(config.input_channels) - later
        self.places(model)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape))

        self.token_embeds = nn.Module()
        weights = parameter(num_variables, dim, 1, model.patch, model.patch)
        self.token_embeds.proj_weights = weights
        self.token_embeds.proj_biases = parameter(num_variables, dim)
        self.var_embed, self.var_query = parameter(1, num_variables, dim), parameter(1, 1, dim)
        self.var_agg = nn.MultiheadAttention(dim, model.num_heads, batch_first=True)
        self.pos_embed = parameter(1, len(self.lat), dim)
        chosen = model.terrain.blocks if model.terrain.blocks is not None else range(model.depth)
        terrain = [model.terrain.enabled and number in chosen for number in range(model.depth)]
        hours = sorted(config.data.lead_times)
        along = hours if model.transport in ("wind", "attention") else None
        self.blocks = nn.ModuleList(PlainBlock(model, here, along) for here in terrain)
        self.norm = nn.LayerNorm(dim)
        outputs = model.patch**2 * (num_leads if self.joint else 1) * len(config.data.targets)
        hidden = [
            layer for _ in range(model.decoder_depth) for layer in (nn.Linear(dim, dim), nn.GELU())
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(dim, outputs))
        if not self.joint:
            self.lead_time_embed = nn.Linear(1, dim)
        if model.scan_embedding:
            self.scan_embed = nn.Linear(SCAN_FEATURES, dim)
        if model.calendar != "off":
            times = 1 + (num_leads if self.joint else 1)
            self.calendar_embed = nn.Linear(3 * times + 2 * (model.calendar != "day"), dim)
        if model.predict == "change":
            self.rho = parameter(num_leads, len(config.data.targets))
        if later:
            self.weather = nn.Module()
            self.weather.embed = nn.Linear(later * (model.patch**2 + 1), dim)
        if model.predict == "change" and config.data.recent_days:
            days = len(config.data.recent_days)
            self.recent_rho = parameter(days, num_leads, len(config.data.targets))
        if model.transport != "off":
            self.transport = nn.Module()
            self.transport.register_buffer("speed", torch.ones(()))
            self.transport.register_buffer("turn", torch.zeros(()))
        if model.transport in ("wind", "fields"):
            channels = (num_leads if self.joint else 1) * len(config.data.targets)
            self.transport.embed = nn.Linear(channels * model.patch**2, dim)
            if model.predict == "change":
                self.transport.rho = parameter(num_leads, len(config.data.targets))

    def places(self, model: Model) -> None:
        """Centre, elevation and domain of each patch, in raster order."""
        height, width = self.grid.shape
        patch = model.patch
        self.shape = (height // patch, width // patch)
        lat, lon, z, inside = [], [], [], []
        for row in range(0, height, patch):
            for column in range(0, width, patch):
                box = (slice(row, row + patch), slice(column, column + patch))
                lat.append(self.grid.lat[box].mean())
                lon.append(self.grid.lon[box].mean())
                z.append(torch.zeros(()))
                if self.grid.elevation is not None:
                    z[-1] = self.grid.elevation[box].double().nanmean().nan_to_num(0.0) / 1000
                inside.append(bool(self.grid.mask[box].any()))
        self.lat, self.lon, self.z = (torch.stack(part).double() for part in (lat, lon, z))
        every = range(len(inside))
        self.tokens = [at for at in every if inside[at] or model.tokens == "all"]
        domain = [at for at in every if inside[at]]
        self.centre = tuple(
            (part[domain].min() + part[domain].max()).item() / 2 for part in (self.lat, self.lon)
        )

    def forward(self, fields: Tensor, time: Tensor, lead_time: Tensor) -> Tensor:
        """[B, V, H, W], [B], [B, K] to [B, K, T, H, W]."""
        batch, leads = lead_time.shape
        to_come = [
            channel.hours if channel.to_come else 0 for channel in self.config.input_channels
        ]
        groups = [list(range(leads))] if self.joint else [[k] for k in range(leads)]
        forecasts = []
        for sample in range(batch):
            orders = self.orders(fields[sample])
            points = self.departures(fields[sample])
            parts = []
            for group in groups:
                hours = lead_time[sample, group].tolist()
                now = [at for at, hour in enumerate(to_come) if hour == 0]
                x = self.embed(fields[sample, now][None])[0, self.tokens]
                x = x + self.pos_embed[0, self.tokens]
                if len(now) < len(to_come):
                    seen = fields[sample].clone()
                    seen[[at for at, hour in enumerate(to_come) if hour > max(hours)]] = torch.nan
                    x = x + self.weather_tokens(
                        seen[[at for at, hour in enumerate(to_come) if hour]]
                    )
                if self.config.model.scan_embedding:
                    x = x + self.scan_embed(self.fractions(fields[sample], orders[0]).to(x.dtype))
                x = x + self.times(int(time[sample]), hours, x.dtype)
                if points is not None and self.config.model.transport != "attention":
                    moved = self.moved(fields[sample], points, hours).nan_to_num(0.0)
                    x = x + self.moved_tokens(moved)
                until = None if self.joint else hours[0]
                wind = None if points is None else self.wind_places(points, until)
                x = self.head(self.norm(self.transform(x[None], orders, wind)))
                parts.append(self.unfold(x[0], len(group)))
            start = self.start(fields[sample], lead_time[sample].tolist(), points)
            forecasts.append(torch.cat(parts) + start)
        return torch.stack(forecasts)

    def physical_wind(self, field: Tensor, hour: int = 0) -> list[Tensor]:
        """u, v [H, W] in m/s of field [V, H, W], some hours after the input time."""
        mean, std = self.statistics.of(("u", "v"))
        names = [name if hour == 0 else f"{name}@+{hour}h" for name in ("u", "v")]
        return [
            field[self.config.input_variables.index(name)].double() * std[at] + mean[at]
            for at, name in enumerate(names)
        ]

    def departures(self, field: Tensor) -> dict[int, Tensor] | None:
        """Row and column [2, H, W] of the air that arrives at each lead time."""
        if self.config.model.transport == "off":
            return None
        times = [0, *sorted(self.config.data.weather_hours)]
        if not {"u", "v"} <= set(self.config.data.weather):
            times = [0]
        winds = [[part.numpy() for part in self.physical_wind(field, time)] for time in times]
        by_time = {time: (u, v) for time, (u, v) in zip(times, winds, strict=True)}
        hours = list(self.config.data.lead_times)
        places = (self.grid.lat.numpy(), self.grid.lon.numpy(), self.grid.mask.numpy())
        factors = float(self.transport.speed), float(self.transport.turn)
        points = trajectories.departures(*places, by_time, hours, *factors)
        return dict(zip(hours, torch.from_numpy(points), strict=True))

    def moved(self, field: Tensor, points: dict[int, Tensor], hours: list[int]) -> Tensor:
        """The targets where the air comes from, NaN where unknown, [K, T, H, W]."""
        targets = [self.variables.index(name) for name in self.config.data.targets]
        leads = [[moved_field(field[at], points[hour]) for at in targets] for hour in hours]
        return torch.stack([torch.stack(lead) for lead in leads]).to(field.dtype)

    def weather_tokens(self, later: Tensor) -> Tensor:
        """What weather to come [C, H, W] adds to each token, [L, D]."""
        patch, columns, rows = self.config.model.patch, self.shape[1], []
        for token in self.tokens:
            top, left = (patch * place for place in divmod(token, columns))
            box = later[:, top : top + patch, left : left + patch].flatten(1)
            known = (~box.isnan()).sum(dim=1) / box.shape[1]
            rows.append(torch.cat([torch.where(box.isnan(), 0.0, box).flatten(), known]))
        return self.weather.embed(torch.stack(rows))

    def moved_tokens(self, moved: Tensor) -> Tensor:
        """Of [K, T, H, W], [L, D]."""
        patch, rows = self.config.model.patch, []
        for token in self.tokens:
            row, column = (patch * place for place in divmod(token, self.shape[1]))
            rows.append(moved[:, :, row : row + patch, column : column + patch].flatten())
        result: Tensor = self.transport.embed(torch.stack(rows))
        return result

    def wind_places(self, points: dict[int, Tensor], until: int | None) -> tuple[Tensor, Tensor]:
        """Position [1, L, 2] and displacement [1, L, K, 2] of the tokens, 1,000 km."""
        patch = self.config.model.patch
        ground = self.on_ground(self.grid.lat, self.grid.lon)
        leads = []
        for hour in sorted(points):
            at = points[hour if until is None else min(hour, until)]
            moved = torch.stack([moved_field(part, at) for part in ground]) - ground
            means = F.avg_pool2d(moved[None], patch)[0].flatten(1)
            leads.append(means[:, self.tokens].T)
        position = self.on_ground(self.lat[self.tokens], self.lon[self.tokens]).T
        dtype = next(self.parameters()).dtype
        return position[None].to(dtype), torch.stack(leads, dim=1)[None].to(dtype)

    def on_ground(self, lat: Tensor, lon: Tensor) -> Tensor:
        """East and north of the domain's centre, 1,000 km."""
        x = torch.cos(torch.deg2rad(lat)) * torch.deg2rad(lon - self.centre[1])
        return 6.371 * torch.stack([x, torch.deg2rad(lat - self.centre[0])])

    def embed(self, fields: Tensor) -> Tensor:
        """Every patch, [B, h * w, D]."""
        embeds = self.token_embeds
        ignore = self.config.model.missing == "ignore"
        weights = (embeds.proj_weights, embeds.proj_biases, self.var_embed, self.var_query)
        return aggregate(fields, *weights, self.var_agg, ignore)

    def sector(self, field: Tensor, box: tuple[slice, slice]) -> int:
        """Of the mean wind over the valid cells of a box of the grid; field [V, H, W]."""
        if self.config.model.scan == "raster":
            return CALM
        u, v = (part[box] for part in self.physical_wind(field))
        return mean_wind_sector(u, v, self.grid.mask[box] & u.isfinite() & v.isfinite(), SECTORS)

    def orders(self, field: Tensor) -> list[list[int]]:
        """Of even and of odd blocks: positions in `tokens` in the order they are read."""
        sector = self.sector(field, (slice(None), slice(None)))
        lat, lon = self.lat[self.tokens], self.lon[self.tokens]
        if sector == CALM:
            # columns from the west are rows from the north of the map with its axes exchanged
            return [raster_order(lat, lon), raster_order(-lon, -lat)]
        angles = [2 * math.pi * sector / SECTORS + turn for turn in (0.0, math.pi / 2)]
        return [scan_order(lat, lon, self.centre, angle) for angle in angles]

    def fractions(self, field: Tensor, order: list[int]) -> Tensor:
        """Scan embedding's input, float64, [L, 64]."""
        if self.config.model.regions is None:
            place = torch.empty(len(order), dtype=torch.float64)
            place[order] = torch.arange(len(order), dtype=torch.float64) / max(1, len(order) - 1)
        else:
            place = self.regional_fractions(field)
        angles = [place * math.pi * 10000.0 ** (n / 31) for n in range(SCAN_FEATURES // 2)]
        return torch.stack([a.sin() for a in angles] + [a.cos() for a in angles], dim=-1)

    def regional_fractions(self, field: Tensor) -> Tensor:
        split, angles = self.config.model.regions, []
        assert split is not None
        rows, columns = (size // part for size, part in zip(self.grid.shape, split, strict=True))
        for r in range(split[0]):
            for c in range(split[1]):
                box = slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns)
                sector = self.sector(field, box)
                angles.append(None if sector == CALM else 2 * math.pi * sector / SECTORS)
        lat, lon = self.lat.view(self.shape), self.lon.view(self.shape)
        ranks, sizes = regional_ranks(lat, lon, self.tokens, split, angles)
        values = [ranks[token] / max(1, sizes[token] - 1) for token in self.tokens]
        return torch.tensor(values, dtype=torch.float64)

    def times(self, time: int, leads: list[int], dtype: torch.dtype) -> Tensor:
        """Lead time and calendar, [L, D]."""
        result = torch.zeros((), dtype=dtype)
        if not self.joint:
            result = result + self.lead_time_embed(torch.tensor([leads[0] / 100], dtype=dtype))
        mode = self.config.model.calendar
        if mode == "off":
            return result
        numbers = [n for hour in (time, *(time + lead for lead in leads)) for n in self.sun(hour)]
        if mode == "day_and_year":
            year = torch.full_like(self.lat[self.tokens], year_phase(time))
            numbers += [year.sin(), year.cos()]
        return result + self.calendar_embed(torch.stack(numbers, dim=-1).to(dtype))

    def sun(self, hour: int) -> Iterator[Tensor]:
        """Sine and cosine of the solar hour, cosine of the zenith angle, each [L], float64."""
        lat, lon = self.lat[self.tokens], self.lon[self.tokens]
        solar = 2 * math.pi * (hour % 24 + lon / 15) / 24
        shift = 2 * math.pi * 10 / 365.2422
        declination = -math.radians(23.44) * math.cos(year_phase(hour) + shift)
        phi = torch.deg2rad(lat)
        up = phi.sin() * math.sin(declination) + phi.cos() * math.cos(declination) * (
            (solar - math.pi).cos()
        )
        yield from (solar.sin(), solar.cos(), up)

    def transform(
        self, x: Tensor, orders: list[list[int]], wind: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The blocks, [1, L, D]; windows are runs of tokens in the order of the block."""
        z, model = self.z[self.tokens].to(x.dtype)[None], self.config.model
        for number, block in enumerate(self.blocks):
            if model.attention == "global":
                x = block(x, z, wind)
                continue
            order, result = orders[number % 2], torch.empty_like(x)
            for first in range(0, len(order), model.window):
                run = order[first : first + model.window]
                here = None if wind is None else (wind[0][:, run], wind[1][:, run])
                result[:, run] = block(x[:, run], z[:, run], here)
            x = result
        return x

    def unfold(self, x: Tensor, leads: int) -> Tensor:
        """[L, p * p * leads * T] to [leads, T, H, W], NaN where there is no token."""
        patch, targets = self.config.model.patch, len(self.config.data.targets)
        field = x.new_full((leads, targets, *self.grid.shape), torch.nan)
        for at, token in enumerate(self.tokens):
            row, column = (patch * place for place in divmod(token, self.shape[1]))
            cells = x[at].reshape(patch, patch, leads, targets).permute(2, 3, 0, 1)
            field[:, :, row : row + patch, column : column + patch] = cells
        return field

    def start(self, field: Tensor, hours: list[int], points: dict[int, Tensor] | None) -> Tensor:
        """What `predict: change` adds to, [K, T, H, W]."""
        if self.config.model.predict == "value":
            return torch.zeros((), dtype=field.dtype)
        rows = [self.config.data.lead_times.index(hour) for hour in hours]
        now = torch.stack([field[self.variables.index(name)] for name in self.config.data.targets])
        now = now.nan_to_num(0.0)
        start = self.rho[rows, :, None, None] * now
        if points is not None and self.config.model.transport != "attention":
            moved = self.moved(field, points, hours)
            brought = torch.where(moved.isnan(), now.expand_as(moved), moved)
            start = start + self.transport.rho[rows, :, None, None] * brought
        for number, days in enumerate(self.config.data.recent_days):
            names = [f"{name}@mean{days}d" for name in self.config.data.targets]
            recent = field[[self.config.input_variables.index(name) for name in names]]
            recent = recent.nan_to_num(0.0)
            start = start + self.recent_rho[number, rows, :, None, None] * recent
        return start


def moved_field(field: Tensor, points: Tensor) -> Tensor:
    """A field [H, W] at points [2, H, W], NaN where no cell around has a value."""
    values, (rows, columns) = field.double().numpy(), points.tolist()
    read = [
        [trajectories.read(values, *at) for at in zip(*both, strict=True)]
        for both in zip(rows, columns, strict=True)
    ]
    return torch.tensor(read, dtype=torch.float64)


def year_phase(hour: int) -> float:
    """Radians of the mean tropical year, counted from the start of 1970."""
    return 2 * math.pi * (hour / 24 / 365.2422 % 1)
