import numpy as np
import pytest

from aqnet.data.sources import limits, units
from aqnet.errors import AqnetError


@pytest.mark.parametrize(
    ("name", "unit", "value", "expected"),
    [
        ("co", "ug m-3", 2.0, 2.0),
        ("co", "ug m**-3", 2.0, 2.0),
        ("co", "µg/m3", 2.0, 2.0),
        ("co", "μg m⁻³", 2.0, 2.0),
        ("co", "mg m-3", 2.0, 2000.0),
        ("co", "kg m**-3", 2e-9, 2.0),
        ("u", "m s-1", 2.0, 2.0),
        ("u", "m s**-1", 2.0, 2.0),
        ("v", "m/s", 2.0, 2.0),
        ("temp", "K", 280.0, 280.0),
        ("temp", "degC", 0.0, 273.15),
        ("psfc", "Pa", 2.0, 2.0),
        ("psfc", "hPa", 2.0, 200.0),
        ("rh", "%", 40.0, 40.0),
        ("rh", "1", 0.4, 40.0),
        ("population", "1", 3.0, 3.0),
        ("elevation", "m", 3.0, 3.0),
        ("lat2d", "degrees_north", 3.0, 3.0),
        ("lon2d", "degrees_east", 3.0, 3.0),
    ],
)
def test_units_become_those_of_aqnet(name, unit, value, expected):
    factor, offset, _ = units.conversion(name, unit, "file")
    assert factor * value + offset == pytest.approx(expected)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("kg kg**-1", 1.0),
        ("kg/kg", 1.0),
        ("ug kg-1", 1e-9),
        ("ppb", 1e-9 * 28.0101 / 28.9647),
        ("ppmv", 1e-6 * 28.0101 / 28.9647),
        ("nmol mol-1", 1e-9 * 28.0101 / 28.9647),
    ],
)
def test_mixing_ratios_come_to_those_by_mass(unit, factor):
    found = units.conversion("co", unit, "file.nc: variable 'co'")
    assert found.unit == units.MIXING_RATIO
    assert found.factor == pytest.approx(factor, rel=1e-12)


def test_a_share_by_volume_of_what_is_no_gas_is_refused():
    with pytest.raises(AqnetError, match="unknown units 'ppb'"):
        units.conversion("pm25", "ppb", "file.nc: variable 'pm25'")


def test_a_mixing_ratio_and_the_air_make_a_concentration():
    # 40 ppb of ozone at 20 degrees and 1,013.25 hPa are 79.8 ug/m3 (WHO's factor is 1.995)
    factor, _, _ = units.conversion("o3", "ppb", "file")
    air = np.full((2, 2), 293.15), np.full((2, 2), 101_325.0)
    found = units.concentration(np.full((2, 2), 40 * factor), *air)
    np.testing.assert_allclose(found, 79.8, rtol=2e-3)


@pytest.mark.parametrize("unit", ["1", "%", "mm h-1", "furlong"])
def test_variables_that_aqnet_does_not_know_keep_values_and_unit(unit):
    assert units.conversion("cloud_cover", unit, "file") == (1.0, 0.0, unit)


def test_a_variable_that_aqnet_does_not_know_needs_a_unit_all_the_same():
    with pytest.raises(AqnetError, match=r"no units.*data\.units\.cloud_cover"):
        units.conversion("cloud_cover", None, "file.nc: variable 'tcc'")


@pytest.mark.parametrize(
    ("unit", "found"), [("furlong", "unknown"), (None, "no units"), ("K", "K")]
)
def test_units_not_understood_name_the_variable_and_the_way_out(unit, found):
    with pytest.raises(AqnetError, match=f"file.nc.*{found}.*data.units.co"):
        units.conversion("co", unit, "file.nc: variable 'co'")


def test_packing_noise_becomes_zero_and_is_counted():
    values = np.array([np.nan, -0.01, -0.001, 0.0, 3.0])
    cleaned, zeroed = units.without_noise(values)
    np.testing.assert_array_equal(cleaned, [np.nan, 0, 0, 0, 3.0])
    assert zeroed == 2


@pytest.mark.parametrize(
    ("name", "unit", "value", "low", "high"),
    [
        ("pm25", "ug m-3", -9999.0, -0.01, 50_000),
        ("co", "mg m-3", -9999.0, -1e-5, 1000),
        ("o3", "kg m-3", 1e20, -1e-11, 5e-6),
        ("temp", "degC", -9999.0, -123.15, 76.85),
        ("psfc", "hPa", 0.0, 300, 1100),
        ("u", "m s-1", 9.96921e36, -150, 150),
        ("rh", "1", 99.0, -0.05, 1.5),
        ("elevation", "m", -32768.0, -500, 9000),
        ("population", "people", -1.0, 0, 1e9),
        ("cloud_cover", "1", np.inf, -1e19, 1e19),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_cannot_be_are_found_in_the_files_unit(name, unit, value, low, high, dtype):
    convert = units.conversion(name, unit, "file")
    sound = np.array([np.nan, *np.linspace(low, high, 5)[1:4]], dtype)
    assert limits.beyond(sound, name, convert) == []
    (wrong,) = limits.beyond(np.append(sound, [value, value]).astype(dtype), name, convert)
    assert (wrong.value, wrong.number, wrong.first) == (dtype(value), 2, (4,))
    block = np.full((1, 2, 2), value, dtype)
    with pytest.raises(AqnetError, match=r"^file holds .*4.*1970-01-01 05:00, row 0, ") as caught:
        limits.refuse(block, name, convert, "file", unit, np.array([5]))
    text = str(caught.value)
    assert ("infinite" in text) or f"data.missing_values: [{limits.shown(dtype(value))}]" in text


def test_the_limit_of_packing_noise_is_not_beyond():
    convert = units.conversion("pm25", "ug m-3", "file")
    assert limits.beyond(np.array([-0.01], np.float32), "pm25", convert) == []
    assert limits.beyond(np.array([-0.0101], np.float32), "pm25", convert)


@pytest.mark.parametrize("code", [-9999.0, 1e20, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_become_missing_in_every_precision(code, dtype):
    values = np.array([1.0, code, -999.0, np.nan, 2.0], dtype)
    found, number = limits.without_codes(values, (code,))
    np.testing.assert_array_equal(found, np.array([1.0, np.nan, np.nan, np.nan, 2.0]))
    assert number == 2
