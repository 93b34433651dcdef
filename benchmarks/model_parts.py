"""What `benchmarks.model_step` measures: aqnet's model and the plain one, whole and in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aqnet import config as configs
from aqnet.batch import Statistics
from aqnet.config import Config
from aqnet.grid import Grid
from aqnet.model.attention.bias import Places
from aqnet.model.block import Block
from aqnet.model.climax import ClimaX
from aqnet.model.tokens.embedding import patch_pixels
from tests.reference.climax import PlainBlock, PlainClimaX

CONFIG = "configs/china_6pollutants.yaml"
DOMAIN = {(128, 256): 2961 / 8192, (340, 432): 0.29}  # share of patches; China's on either grid
REGIONS = {(32, 64): [16, 16], (340, 432): [34, 27]}  # where the original's 32 x 32 do not fit
Step = Callable[[], Tensor]  # a forward pass; the result is what the backward pass starts from


@dataclass(frozen=True)
class Part:
    """One measurement, made in a process of its own.

    Attributes:
        what: `aqnet` or `plain`; piece: `whole`, `embedding`, `terrain block`, `block` or `paths`.
        grid: cells; model: settings in place of the original configuration's.
        leads: lead times of the one sample.
        runs: how often it runs; the fastest counts. memory: GB it may take.
        compile: by torch.compile, whole, which its first run does.
    """

    what: str
    piece: str
    grid: tuple[int, int]
    model: dict[str, Any] = field(default_factory=dict)
    leads: int = 1
    runs: int = 2
    memory: float = 8.0
    compile: bool = False


def config_of(part: Part) -> Config:
    """The original configuration without drop rates and with the part's settings."""
    tree = configs.to_dict(configs.load(CONFIG))
    model = {**tree["model"], "drop_rate": 0.0, "drop_path": 0.0, **part.model}
    if model["regions"] is not None:
        model["regions"] = REGIONS.get(part.grid, model["regions"])
    return configs.from_dict({**tree, "model": model}, CONFIG)


def grid_of(shape: tuple[int, int]) -> Grid:
    """A grid over China: mountains in the west, and a domain of China's share of 2 x 2 patches."""
    height, width = shape
    lat = torch.linspace(55, 15, height, dtype=torch.float64)[:, None].expand(shape)
    lon = torch.linspace(70, 140, width, dtype=torch.float64).expand(shape)
    ridges = 1 + 0.3 * torch.sin(lat) * torch.cos(1.3 * lon)
    elevation = (4500 * ridges * torch.sigmoid((100 - lon) / 4)).float()
    rows, columns = height // 2, width // 2
    patches = lambda values: values.reshape(rows, 2, columns, 2).mean(dim=(1, 3))  # noqa: E731
    distance = ((patches(lat) - 36) / 17) ** 2 + ((patches(lon) - 104) / 30) ** 2
    wanted = round(DOMAIN.get(shape, DOMAIN[128, 256]) * rows * columns)
    inside = torch.zeros(rows * columns, dtype=torch.bool)
    inside[distance.flatten().argsort(stable=True)[:wanted]] = True
    mask = inside.view(rows, columns).repeat_interleave(2, 0).repeat_interleave(2, 1)
    return Grid(lat, lon, elevation, mask)


def statistics_of(config: Config) -> Statistics:
    names = config.data.variables
    return Statistics(names, (0.0,) * len(names), (10.0,) * len(names))


def sample(part: Part, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """One sample in a westerly wind, NaN outside the domain in the pollutants."""
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(1, len(config.input_variables), *part.grid, generator=generator)
    fields[:, config.data.variables.index("u")] += 0.5
    pollutants = [config.data.variables.index(name) for name in config.data.targets]
    fields[:, pollutants] = fields[:, pollutants].where(grid_of(part.grid).mask, torch.nan)
    return fields, torch.tensor([400_000]), torch.tensor([config.data.lead_times[-part.leads :]])


def models(part: Part) -> tuple[ClimaX, Config]:
    """aqnet's model with every parameter in effect, evaluation mode irrelevant: nothing drops."""
    config = config_of(part)
    torch.manual_seed(0)
    model = ClimaX(config, grid_of(part.grid), statistics_of(config))
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return model, config


def plain_model(part: Part, weights: dict[str, Tensor]) -> PlainClimaX:
    config = config_of(part)
    plain = PlainClimaX(config, grid_of(part.grid), statistics_of(config))
    plain.load_state_dict(weights)
    return plain


def step_of(part: Part) -> tuple[Step, nn.Module]:
    """The forward pass of a part, and the module whose parameters take gradients."""
    if part.piece == "whole":
        model, config = models(part)
        inputs = sample(part, config)
        module: nn.Module = model
        if part.what == "plain":
            module = plain_model(part, model.state_dict())
        if part.compile:
            module.compile()
        return lambda: module(*inputs).nan_to_num(0.0).square().mean(), module
    if part.piece == "embedding":
        return embedding_step(part)
    return paths_step(part) if part.piece == "paths" else block_step(part)


def paths_step(part: Part) -> tuple[Step, nn.Module]:
    """Where the air comes from and what it brings, without the embedding of it; no gradients."""
    model, config = models(part)
    fields, _, lead_time = sample(part, config)
    own, weight = torch.arange(lead_time.shape[1])[None], nn.Parameter(torch.ones(()))
    return lambda: weight * model.bring(fields, own).targets.nan_to_num(0.0).mean(), model


def embedding_step(part: Part) -> tuple[Step, nn.Module]:
    model, config = models(part)
    fields, _, _ = sample(part, config)
    if part.what == "plain":
        plain = plain_model(part, model.state_dict())
        return lambda: plain.embed(fields).square().mean(), plain

    def embed() -> Tensor:
        pixels = patch_pixels(fields, model.model.patch).nan_to_num(0.0)
        affine = model.token_embeds.affine(model.var_embed)
        aggregate: Tensor = model.var_agg(pixels, None, affine, model.var_query)
        return aggregate.square().mean()

    return embed, model


def block_step(part: Part) -> tuple[Step, nn.Module]:
    """One block over all tokens; its input takes a gradient too."""
    config, (height, width) = config_of(part), part.grid
    terrain = part.piece == "terrain block"
    length, dim = height * width // config.model.patch**2, config.model.embed_dim
    torch.manual_seed(0)
    block = Block(config.model, 0.0, terrain)
    z = (5 * torch.rand(length, dtype=torch.float64)).sort().values
    x = torch.randn(1, length, dim, requires_grad=True)
    if part.what == "plain":
        plain = PlainBlock(config.model, terrain)
        plain.load_state_dict(block.state_dict())
        return lambda: plain(x, z.float()[None]).square().mean(), plain
    return lambda: block(x, Places(z.unsqueeze(0))).square().mean(), block


def flops(part: Part) -> float:
    """Of forward and backward by formula: multiply-adds of the matrices twice, backward twice that.

    Folded aggregation is counted folded, and what flash attention computes again is not counted.
    """
    config = config_of(part)
    model = config.model
    dim, length = model.embed_dim, tokens(part, config)
    context = min(length, model.window) if model.attention == "window" else length
    variables, cells = len(config.data.variables), model.patch**2
    if part.what == "plain":  # every patch, its query projected each time
        patches = math.prod(part.grid) // cells
        embedding = 2.0 * patches * (variables * dim * (cells + 2 * dim + 2) + 2 * dim**2)
    else:
        per_token = variables * (cells + 1) * (model.num_heads + dim)
        embedding = 2.0 * length * (per_token + dim**2)
    block = length * (2.0 * dim**2 * (4 + 2 * model.mlp_ratio) + 4.0 * context * dim)
    if part.piece == "embedding":
        return 3 * embedding
    if part.piece == "paths":
        return 0.0
    if part.piece != "whole":
        return 3 * block
    passes = 1 if model.lead_time_mode == "joint" else part.leads
    outputs = cells * len(config.data.targets) * (part.leads // passes)
    head = 2.0 * length * dim * (dim * model.decoder_depth + outputs)
    return 3 * (embedding + passes * (model.depth * block + head))


def tokens(part: Part, config: Config) -> int:
    """Tokens that the part works on."""
    patches = math.prod(part.grid) // config.model.patch**2
    if part.piece != "whole" or config.model.tokens == "all":
        return patches
    return round(DOMAIN.get(part.grid, DOMAIN[128, 256]) * patches)
