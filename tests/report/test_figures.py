import html
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrimp.report.figures import Line, bar_chart, line_chart, stacked_bar


def draw(*lines, **options):
    return line_chart(lines, title="Loss", description="How it fell.", x_label="epoch", **options)


def parse(figure):
    """The figure as XML, which also shows that every tag is closed and every value quoted."""
    return ET.fromstring(figure.html)


def chart_data(figure):
    return json.loads(parse(figure).get("data-chart"))


def points(figure):
    return [tuple(map(float, pair.split())) for path in paths(figure) for pair in path[1:].split("L")]


def paths(figure):
    return [element.get("d") for element in parse(figure).iter("path")]


def test_known_points_land_where_they_belong():
    figure = draw(Line("train", [0, 1, 2], [0.0, 1.0, 0.5]))
    assert paths(figure) == ["M0.0 1000.0L500.0 0.0L1000.0 500.0"]
    assert chart_data(figure)["series"] == [[[0, 0], [1, 1], [2, 0.5]]]


def test_a_chart_is_an_image_with_name_and_description():
    image = next(parse(draw(Line("a", [0, 1], [1, 2]))).iter("svg"))
    assert image.get("role") == "img"
    title, description = list(image)[:2]
    assert (title.tag, title.text, title.get("id")) == ("title", "Loss", image.get("aria-labelledby"))
    assert (description.tag, description.text) == ("desc", "How it fell.")
    assert description.get("id") == image.get("aria-describedby")


def test_without_a_single_value_the_chart_says_so():
    for figure in (draw(), draw(Line("a", [], [])), draw(Line("a", [0, 1], [math.nan, math.inf]))):
        assert "Nothing was recorded." in "".join(parse(figure).itertext())


def test_one_value_is_a_dot():
    figure = draw(Line("a", [3], [2.0]))
    assert paths(figure) == []
    assert [(dot.get("cx"), dot.get("cy")) for dot in parse(figure).iter("circle")] == [("100.00%", "50.00%")]


def test_values_that_are_not_finite_are_gaps_and_are_counted():
    figure = draw(Line("a", range(8), [1, 2, math.nan, 3, math.inf, 5, 4, -math.inf]))
    assert [path.count("L") for path in paths(figure)] == [1, 1]
    assert len(list(parse(figure).iter("circle"))) == 1
    assert "3 values that are not finite" in figure.html
    assert "NaN" not in figure.html
    assert "Infinity" not in figure.html


def test_many_points_are_thinned():
    number = 100_000
    figure = draw(Line("a", [i / 1000 for i in range(number)], [math.sin(i) for i in range(number)]))
    assert 300 < len(points(figure)) <= 400
    assert len(figure.html) < 30_000


def test_log_scale_only_where_every_value_is_positive():
    assert "log scale" in draw(Line("a", [0, 1], [0.01, 1.0]), log_y=True).html
    assert "log scale" not in draw(Line("a", [0, 1], [0.0, 1.0]), log_y=True).html
    assert points(draw(Line("a", [0, 1, 2], [0.01, 0.1, 1.0]), log_y=True))[1] == (500.0, 500.0)


def test_marked_curves_have_a_dot_per_value_and_a_legend_with_the_last():
    figure = draw(Line("train", [0, 1], [3, 1]), Line("test", [0.5, 1], [2, 1.5], is_marked=True))
    assert [dot.get("class") for dot in parse(figure).iter("circle")] == ["s2", "s2"]
    assert [" ".join("".join(item.itertext()).split()) for item in parse(figure).iter("li")] == ["train 1", "test 1.5"]


def test_however_many_curves_there_are_each_is_drawn_and_named():
    figure = draw(*(Line(f"line {i}", [0, 1], [i, i + 1]) for i in range(6)))
    classes = [path.get("class").split()[-1] for path in parse(figure).iter("path")]
    assert classes == ["s1", "s2", "s3", "s4", "s1", "s2"]
    assert [next(item.itertext()).strip() for item in parse(figure).iter("li")] == [f"line {i}" for i in range(6)]


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.floats(min_value=0, max_value=1e9), numbers), max_size=50), st.booleans(), st.booleans())
def test_any_values_give_a_well_formed_chart_inside_its_box(pairs, log_y, from_zero):
    pairs.sort(key=lambda pair: pair[0])
    figure = draw(Line("a", [x for x, _ in pairs], [y for _, y in pairs]), log_y=log_y, from_zero=from_zero)
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in points(figure))
    for text in parse(figure).iter("text"):
        assert not re.search("nan|inf", text.text)


@given(st.lists(numbers, max_size=300))
def test_any_values_give_well_formed_bars_inside_their_box(heights):
    figure = bar_chart(heights, title="Time", description="", name="seconds", x_label="epoch")
    bars = list(parse(figure).iter("rect"))
    assert len(bars) <= 60
    for bar in bars:
        left, top, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
        assert left >= 0
        assert top >= 0
        assert left + width <= 1000.1
        assert top + height == pytest.approx(1000)


def test_bars_have_known_heights():
    figure = bar_chart([5, 10, math.nan, 0], title="Time", description="", name="seconds", x_label="epoch")
    assert [float(bar.get("height")) for bar in parse(figure).iter("rect")] == [500, 1000, 0]
    assert chart_data(figure)["series"] == [[[1, 5], [2, 10], [4, 0]]]


def test_many_bars_become_means_of_groups():
    figure = bar_chart([1.0, 3.0] * 60, title="Time", description="", name="seconds", x_label="epoch", unit="seconds")
    assert {y for _, y in chart_data(figure)["series"][0]} == {2.0}
    assert "seconds, mean of 2 each" in figure.html


def test_a_stacked_bar_shares_out_its_width():
    figure = stacked_bar([("data", 1.0), ("forward", 3.0), ("odd", math.nan)], title="Time", description="")
    assert [(bar.get("x"), bar.get("width")) for bar in parse(figure).iter("rect")] == [
        ("0.0", "250.0"),
        ("250.0", "750.0"),
    ]
    assert ["".join(row.itertext()) for row in parse(figure).iter("tr")] == ["data1.00 s25.0 %", "forward3.00 s75.0 %"]
    assert "Nothing was recorded." in stacked_bar([("data", 0.0)], title="Time", description="").html


def test_names_are_escaped():
    evil = "<script>alert('\"')</script>"
    for figure in (
        line_chart(
            [Line(evil, [0, 1], [1, 2]), Line("b", [0], [1])], title=evil, description=evil, x_label=evil, unit=evil
        ),
        bar_chart([1], title=evil, description=evil, name=evil, x_label=evil, unit=evil),
        stacked_bar([(evil, 1.0)], title=evil, description=evil),
    ):
        assert "<script" not in figure.html
        assert evil in html.unescape(figure.html)
        parse(figure)
