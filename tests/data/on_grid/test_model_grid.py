"""CAQRA through prepare on a coarser grid, with winds along the grid and statics of other grids."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from aqnet import config as configs
from aqnet.data.prepare.run import prepare
from aqnet.data.stores import store
from aqnet.errors import AqnetError
from tests.data.source_writers import hours, lambert, write_caqra, write_zarr

pytest.importorskip("netCDF4")
SHAPE = (9, 14)  # of the source
TIMES = np.concatenate([hours(year, 4) for year in (2013, 2014, 2015)])


def load(folder: Path, **data: Any) -> configs.Config:
    tree: dict[str, Any] = {
        "run_dir": "run",
        "data": {
            "stores": str(folder / "stores"),
            "sources": [{"path": str(folder / "CN-Reanalysis*.nc")}],
            "variables": ["u", "v", "pm25", "co", "lat2d", "lon2d", "elevation", "population"],
            "targets": ["pm25", "co"],
            "split": {"train": ["2013"], "validation": ["2014"], "test": ["2015"]},
            "static_files": {
                "elevation": str(folder / "elevation.nc"),
                "population": str(folder / "people.npy"),
            },
            **data,
        },
        "model": {
            "patch": 2,
            "embed_dim": 8,
            "num_heads": 2,
            "depth": 1,
            "scan": "raster",
            "transport": "off",
            "terrain": {"enabled": False},
        },
        "train": {"max_steps": 1},
    }
    return configs.from_dict(tree, "here")


def prepared(config: configs.Config) -> store.Store:
    prepare(config)
    return store.open_store(Path(config.data.stores) / "2013.zarr")


def write_elevation(path: Path, scale: float = 1.0, unit: str = "m", **other: Any) -> None:
    """100 m a degree of latitude, on a degree grid finer than CAQRA's."""
    import netCDF4

    lat, lon = np.linspace(65, 10, 221), np.linspace(60, 150, 361)
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("lat", 221)
        file.createDimension("lon", 361)
        file.createVariable("lat", "f8", ("lat",))[:] = lat
        file.createVariable("lon", "f8", ("lon",))[:] = lon
        variable = file.createVariable(other.get("name", "z"), "f4", ("lat", "lon"))
        variable.units = unit
        variable[:] = np.repeat(scale * 100 * lat[:, None], 361, axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def values(name: str, hour: int) -> np.ndarray:
        field = np.full(SHAPE, {"u": 10.0, "v": 0.0}.get(name, 20.0), np.float32)
        if name == "pm25":
            field[:, :2] = np.nan
            field += np.arange(SHAPE[1])
        return field

    write_caqra(tmp_path, TIMES, SHAPE, values=values)
    write_elevation(tmp_path / "elevation.nc")
    np.save(tmp_path / "people.npy", np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE))
    return tmp_path


def test_caqra_is_coarsened_in_its_own_index_space(folder: Path):
    made = prepared(load(folder, resample="area", shape="3x7"))
    assert made.grid.shape == (3, 7)  # whatever the patch
    lat, lon, _ = lambert(3, 7, (450.0, 300.0))
    np.testing.assert_allclose(made.grid.lat, lat, atol=0.1)
    np.testing.assert_allclose(made.grid.lon, lon, atol=0.1)
    fields = made.read(0)
    co, pm25 = fields[made.names.index("co")], fields[made.names.index("pm25")]
    np.testing.assert_allclose(co, 20000, rtol=1e-6)  # mg/m3
    np.testing.assert_allclose(
        pm25[:, 1:], np.tile(20 + np.arange(2, 14).reshape(6, 2).mean(1), (3, 1))
    )
    assert np.isnan(pm25[:, 0]).all()
    np.testing.assert_array_equal(made.grid.mask, True)  # co is there
    population = made.static["population"]
    assert population.sum() == np.arange(SHAPE[0] * SHAPE[1]).sum()
    np.testing.assert_allclose(made.static["elevation"], 100 * lat, atol=30)


def test_native_grid_and_bilinear(folder: Path):
    native = prepared(load(folder))
    assert native.grid.shape == SHAPE
    np.testing.assert_allclose(native.grid.lat, lambert(*SHAPE, 150.0)[0], atol=1e-4)
    np.testing.assert_array_equal(native.static["population"][0, :9], np.arange(9))
    config = load(folder, resample="bilinear", shape="9x7", stores=str(folder / "b"))
    pm25 = prepared(config).read(0)[2][:, 1:]
    np.testing.assert_allclose(pm25, np.tile(20 + 2.5 + 2 * np.arange(6), (9, 1)))


def test_winds_along_the_grid_are_turned_to_the_earth(folder: Path):
    earth = prepared(load(folder)).read(0)
    np.testing.assert_allclose(earth[0], 10)
    turned = prepared(load(folder, winds="grid", stores=str(folder / "turned"))).read(0)
    angle = lambert(*SHAPE, 150.0)[2]
    np.testing.assert_allclose(turned[0], 10 * np.cos(angle), atol=0.02)
    np.testing.assert_allclose(turned[1], 10 * np.sin(angle), atol=0.06)
    assert abs(turned[1]).max() > 1
    with pytest.raises(AqnetError, match="both u and v"):
        prepare(load(folder, winds="grid", variables=["u", "pm25", "co", "lat2d", "elevation"]))
    with pytest.raises(AqnetError, match="winds differ"):
        prepare(load(folder, winds="grid"))


def test_one_mask_from_a_file_of_any_grid(folder: Path, capsys: pytest.CaptureFixture[str]):
    np.save(folder / "mask.npy", np.arange(14) < np.array([[5]]) * np.ones((9, 1)))
    made = prepared(load(folder, resample="area", shape="3x7", mask_file=str(folder / "mask.npy")))
    np.testing.assert_array_equal(made.grid.mask, [[True] * 3 + [False] * 4] * 3)
    assert "100% of the cells of data.mask_file hold a target in the first 12 times, 12 cells" in (
        capsys.readouterr().out
    )
    write_elevation(folder / "mask.nc", 0.0, name="mask")
    import netCDF4

    with netCDF4.Dataset(folder / "mask.nc", "a") as file:
        file["mask"][:] = np.repeat(file["lat"][:][:, None] > 35, 361, axis=1)
    config = load(folder, mask_file=str(folder / "mask.nc"), stores=str(folder / "other"))
    lat = lambert(*SHAPE, 150.0)[0]
    clear = abs(lat - 35) > 0.8
    made = prepared(config)
    np.testing.assert_array_equal(made.grid.mask.numpy()[clear], (lat > 35)[clear])
    for year in (2014, 2015):
        other = store.open_store(folder / f"other/{year}.zarr")
        assert (other.grid.mask == made.grid.mask).all()
    data = dataclasses.replace(config.data, mask_file=str(folder / "mask.npy"))
    with pytest.raises(AqnetError, match="domain mask differs"):
        prepare(dataclasses.replace(config, data=data))


def test_zarr_statics_and_their_units(folder: Path):
    values = {"population": np.full((2, 3, 4), 2.0, np.float32)}
    write_zarr(folder / "static.zarr", hours(2013, 2), values, units="people")
    files = {"elevation": str(folder / "elevation.nc"), "population": str(folder / "static.zarr")}
    with pytest.raises(AqnetError, match=r"static\.zarr: variable 'population'.*has 2 of 'time'"):
        prepare(load(folder, static_files=files))
    files["population"] = str(folder / "people.npy")
    write_elevation(folder / "km.nc", 1e-3, "km")
    files["elevation"] = str(folder / "km.nc")
    made = prepared(load(folder, static_files=files))
    np.testing.assert_allclose(made.static["elevation"], 100 * made.static["lat2d"], atol=30)
    write_elevation(folder / "feet.nc", 3.28, "ft")
    files["elevation"] = str(folder / "feet.nc")
    with pytest.raises(AqnetError, match="unknown units 'ft'"):
        prepare(load(folder, static_files=files, stores=str(folder / "c")))


def test_an_empty_mask_and_statics_added_later_are_refused(folder: Path):
    np.save(folder / "mask.npy", np.zeros(SHAPE))
    with pytest.raises(AqnetError, match=r"mask\.npy: no cell of the grid is inside"):
        prepare(load(folder, mask_file=str(folder / "mask.npy")))
    prepare(load(folder, variables=["u", "v", "pm25", "co", "elevation"]))
    with pytest.raises(AqnetError, match="static variables differ"):
        prepare(load(folder))


@pytest.mark.parametrize("name", ["elevation.nc", "elevation.zarr"])
def test_an_edited_static_field_is_noticed(folder: Path, name: str):
    def write(height: float) -> None:
        if name.endswith(".nc"):
            write_elevation(folder / name, height)
            return
        lat, lon = np.linspace(10, 65, 3), np.linspace(60, 150, 4)
        write_zarr(folder / name, hours(2013, 1), {"pm25": np.ones((1, 3, 4))}, lat=lat)
        group = zarr.open_group(folder / name)
        group["lon"][:], group["elevation"][:] = lon, height  # type: ignore[index]

    files = {"elevation": str(folder / name), "population": str(folder / "people.npy")}
    config = load(folder, static_files=files)
    write(1.0)
    prepare(config)
    write(2.0)
    with pytest.raises(AqnetError, match="static_files differ"):
        prepare(config)
    files["elevation"] = str(folder / "none.zarr")
    with pytest.raises(AqnetError, match=r"data\.static_files: .*none\.zarr: no such file"):
        prepare(load(folder, static_files=files, stores=str(folder / "other")))


def test_statics_that_cannot_be_placed_are_refused(folder: Path):
    np.save(folder / "people.npy", np.ones((5, 5)))
    with pytest.raises(AqnetError, match=r"people\.npy: has shape \(5, 5\) and no coordinates"):
        prepare(load(folder))
    (folder / "people.npy").write_bytes(b"no array")
    with pytest.raises(AqnetError, match=r"people\.npy: cannot read"):
        prepare(load(folder))
    lat, lon = np.linspace(-10, -40, 3), np.linspace(-70, -40, 4)
    write_zarr(folder / "south.zarr", hours(2013, 1), {"pm25": np.ones((1, 3, 4))}, lat=lat)
    zarr.open_group(folder / "south.zarr")["lon"][:] = lon  # type: ignore[index]
    files = {"elevation": str(folder / "south.zarr"), "population": str(folder / "south.zarr")}
    with pytest.raises(AqnetError, match="covers no cell"):
        prepare(load(folder, static_files=files))
