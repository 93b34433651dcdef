"""What evaluate.py can be asked for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from aqnet.config import Config
from aqnet.errors import AqnetError, at_least


def command_line() -> argparse.ArgumentParser:
    """The options of evaluate.py."""
    parser = argparse.ArgumentParser(
        description="Score a model against simple forecasts, or forecast with it."
    )
    parser.add_argument("--checkpoint", help="run directory, or a step_* directory")
    parser.add_argument("--config", help="instead of the checkpoint's own")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--output", required=True, help="folder for metrics.json and metrics.csv")
    parser.add_argument(
        "--max-samples", type=at_least(1), help="draw so many input times, once for all"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of that draw")
    parser.add_argument(
        "--forecast",
        metavar="TIME | FIRST/LAST",
        help="only forecast: from this time (UTC), or from all hours of a range into one Zarr",
    )
    parser.add_argument(
        "--source", metavar="GLOB", help="with --forecast: source files instead of the stores"
    )
    parser.add_argument(
        "--weather",
        nargs="+",
        default=[],
        metavar="analysed | persisted | none | FILE",
        help="weather to come for a model with data.weather: that of the stores (default), the "
        "input time's, none (default with --forecast), or forecasts in NetCDF files",
    )
    parser.add_argument(
        "--forecast-file",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="score a forecast made elsewhere on the same samples (forecasts.zarr, CAMS NetCDF)",
    )
    parser.add_argument(
        "--stations",
        metavar="CSV[,CSV]",
        help="score at stations as well: id, lat, lon, time, pollutant, value, or OpenAQ's, EEA's",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="only compare two runs that were scored (their --output, or run directories)",
    )
    parser.add_argument("--regions", help=".npz of named masks, bool [H, W], scored besides all")
    parser.add_argument("--no-pictures", action="store_true", help="tables alone, which is quicker")
    parser.add_argument(
        "--micro-batch", type=at_least(1), default=8, help="input times per forward"
    )
    parser.add_argument(
        "--save-forecasts",
        type=at_least(0),
        default=16,
        metavar="N",
        help="keep the forecasts of the first N times in OUTPUT/forecasts.zarr (0: of none)",
    )
    parser.add_argument("--workers", type=at_least(0), default=0, help="loader processes a process")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.stores=/other/place"
    )
    return parser


def check(options: argparse.Namespace, stored: Sequence[str]) -> None:
    """Refuse options that do not go together; put `key=value` among --weather's files aside.
    `stored` are the names of weather to come that stores hold."""
    if bool(options.compare) == bool(options.checkpoint):
        raise AqnetError("give either --checkpoint RUN_DIR or --compare RUN_A RUN_B")
    if options.source and not options.forecast:
        raise AqnetError("--source needs --forecast TIME; a split is scored on the stores")
    # argparse gives the key=value at the end of the line to the files before it
    after = [text for text in options.weather if _is_override(text)]
    options.weather = [text for text in options.weather if text not in after]
    options.overrides = [*options.overrides, *after]
    if len(options.weather) > 1 and set(options.weather) & set(stored):
        raise AqnetError(
            f"--weather {' '.join(options.weather)}: give one of {', '.join(stored)}, or files"
        )
    names = [text.partition("=")[0] for text in options.forecast_file]
    if len(set(names)) < len(names):
        raise AqnetError(f"--forecast-file: {', '.join(names)}: each needs a NAME of its own")


def _is_override(text: str) -> bool:
    """Whether a text begins with a key of a config and '=': `data.units={}` is an override,
    `date=2026/*.nc` and `in/data=1.nc` are files."""
    key, equals, _ = text.partition("=")
    known = (field.name for field in dataclasses.fields(Config))
    return bool(equals) and key.partition(".")[0] in known
