import math

import pytest

from scrimp.report.units import (
    byte_unit,
    format_bytes,
    format_bytes_exact,
    format_number,
    format_percent,
    format_ratio,
    format_seconds,
)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (103_412, "103.4 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (1_651_624, "1.7 MB"),
        (5_300_000_000, "5.3 GB"),
        (math.nan, "unknown"),
    ],
)
def test_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


def test_exact_bytes_and_units():
    assert format_bytes_exact(103_412) == "103,412 bytes"
    assert byte_unit(12) == (1, "bytes")
    assert byte_unit(3_303_248) == (1e6, "MB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.417, "0.42 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 m 00 s"),
        (83.2, "1 m 23 s"),
        (3599.6, "1 h 00 m"),
        (7500, "2 h 05 m"),
        (math.nan, "unknown"),
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0213, "0.0213"),
        (24.0, "24"),
        (1e-5, "1e-05"),
        (9999.4, "9999"),
        (9999.6, "10,000"),
        (math.nan, "not a number"),
    ],
)
def test_numbers(value, text):
    assert format_number(value) == text


def test_fractions_and_ratios():
    assert format_percent(0.98614) == "98.61 %"
    assert format_percent(1.0, digits=1) == "100.0 %"
    assert format_ratio(10, 4) == "2.5x"
    assert format_ratio(10, 0) == "unknown"
