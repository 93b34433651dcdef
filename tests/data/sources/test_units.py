import numpy as np
import pytest

from aqnet.data.sources import units
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


@pytest.mark.parametrize("unit", ["kg kg**-1", "kg/kg", "ug kg-1", "ppb", "mol mol-1"])
def test_mixing_ratio_is_refused_with_the_reason(unit):
    with pytest.raises(AqnetError, match="density of the air"):
        units.conversion("co", unit, "file.nc: variable 'co'")


@pytest.mark.parametrize(
    ("unit", "found"), [("furlong", "unknown"), (None, "no units"), ("K", "K")]
)
def test_units_not_understood_name_the_variable_and_the_way_out(unit, found):
    with pytest.raises(AqnetError, match=f"file.nc.*{found}.*data.units.co"):
        units.conversion("co", unit, "file.nc: variable 'co'")


def test_packing_noise_becomes_zero_and_is_counted():
    values = np.array([np.nan, -0.01, -0.001, 0.0, 3.0])
    cleaned, zeroed, lowest = units.without_noise(values)
    np.testing.assert_array_equal(cleaned, [np.nan, 0, 0, 0, 3.0])
    assert (zeroed, lowest) == (2, 0.0)


def test_values_below_the_noise_are_reported():
    assert units.without_noise(np.array([-0.5, -0.001]))[1:] == (1, -0.5)
