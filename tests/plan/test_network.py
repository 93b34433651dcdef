"""The line about the network at the start of a run on several nodes."""

from aqnet.plan import machine, network

MI250X, SIZE = "AMD Instinct MI250X", 200_000_000


def test_slow_network_is_a_warning_below_a_third_of_the_plan_and_not_above():
    rates = machine.preset("lumi-g", "fp32").rates
    assert rates is not None
    planned = machine.all_reduce_seconds(SIZE, 4, 8, rates)
    slow = network.report(3.1 * planned, SIZE, 4, 8, MI250X)
    assert slow.startswith("warning: network: 200 MB summed over 4 nodes")
    fine = network.report(2.9 * planned, SIZE, 4, 8, MI250X)
    assert fine.startswith("network:") and "the plan for lumi-g assumes" in fine


def test_bandwidth_is_that_of_each_link_of_a_ring():
    # 2 (n - 1) / n of the bytes pass each link: 1.5 of 1 GB with four processes
    said = network.report(0.1, 10**9, 2, 2, MI250X)
    assert "100 ms, 15 GB/s" in said


def test_unknown_processors_are_said_to_be_without_a_figure():
    assert network.report(0.1, SIZE, 2, 1, "CPUs").endswith("the plan has no figure for CPUs")
