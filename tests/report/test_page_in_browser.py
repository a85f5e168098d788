import base64
import re

import pytest
from tests.report.chromium import Chromium, executable
from tests.report.fake_run import write_image_run, write_text_run
from tests.report.test_comparison import write

from scrimp.report import RunWriter, write_page
from scrimp.report.comparison import read_comparison
from scrimp.report.comparison_files import write_comparison
from scrimp.report.png import encode_png

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium on this machine")

OVERFLOWING = """
[...document.querySelectorAll("main *")].filter(
  (element) => element.getBoundingClientRect().right > WIDTH + 0.5 || element.getBoundingClientRect().left < -0.5
).map((element) => element.outerHTML.slice(0, 80))
"""
# Labels of one axis whose boxes meet, and labels that hang out of the card
CLASHING = """
[...document.querySelectorAll(".plot")].flatMap((plot) => ["text.x", "text.y"].flatMap((kind) => {
  const boxes = [...plot.querySelectorAll(kind)].map((text) => text.getBoundingClientRect());
  const card = plot.closest("figure").getBoundingClientRect();
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const isOut = (a) => a.left < card.left || a.right > card.right;
  return boxes.filter((a, i) => isOut(a) || boxes.some((b, j) => i < j && meet(a, b)));
})).length
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll(".plot text")].map((text) => parseFloat(getComputedStyle(text).fontSize)))
"""


def brightness(browser, what):
    """Red, green and blue of the page's paper or ink, summed: 0 is black, 765 white."""
    colour = browser.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    return {
        "image": write_page(write_image_run(root / "image")),
        "text": write_page(write_text_run(root / "text")),
    }


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "c"
    write(folder)
    png = base64.b64encode(encode_png(bytes(4), width=2, height=2, num_channels=1)).decode()
    picture = [{"sample": 1, "class": "<b>", "visits": 3, "png": png}]
    with RunWriter(folder / "samples-seed0") as writer:
        told = {"num_counted": 4, "num_samples": 4, "histogram": [0, 2, 2], "least": picture, "most": picture}
        writer.write("visited", step=9, epoch=4.0, seconds=1.0, **told)
    return write_comparison(read_comparison(folder))[-1]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["image", "text"])
def test_the_page_renders(browser, pages, name, width, height, is_dark):
    browser.open(pages[name], width=width, height=height, is_dark=is_dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING.replace("WIDTH", str(width))) == []
    assert browser.evaluate(CLASHING) == 0
    num_curves = {"image": 8, "text": 4}[name]
    assert browser.evaluate("document.querySelectorAll('.marks path').length") == num_curves
    drawn = "[...document.querySelectorAll('.marks path')].every((path) => path.getBoundingClientRect().width > 100)"
    assert browser.evaluate(drawn)
    assert browser.evaluate(SMALLEST_TEXT) >= 12
    paper, ink = brightness(browser, "backgroundColor"), brightness(browser, "color")
    dark, light = (paper, ink) if is_dark else (ink, paper)
    assert dark < 120
    assert light > 600


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)], ids=["desktop", "phone"])
def test_the_page_of_a_comparison_renders(browser, comparison, width, height, is_dark):
    browser.open(comparison, width=width, height=height, is_dark=is_dark)
    assert browser.complaints() == []
    addresses = [address for address in browser.requests() if not address.startswith("data:image/png")]
    assert addresses == [comparison.resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(OVERFLOWING.replace("WIDTH", str(width))) == []
    assert browser.evaluate(CLASHING) == 0
    assert browser.evaluate("document.querySelectorAll('.compared tbody tr').length") == 3
    assert browser.evaluate("document.querySelectorAll('.scatter').length") == 3
    pictures = "[...document.querySelectorAll('.gallery img')]"
    assert browser.evaluate(f"{pictures}.length") == 2
    assert browser.evaluate(f"{pictures}.every((one) => one.naturalWidth === 2 && one.width > 20)")
    seen = "(row) => [...row.querySelectorAll('circle')].every((dot) => getComputedStyle(dot).fill !== 'rgb(0, 0, 0)')"
    assert browser.evaluate(f"[...document.querySelectorAll('.scatter')].every({seen})"), "every point has its colour"


def test_the_pointer_reads_out_values_and_leaves_the_legend_as_it_was(browser, pages):
    browser.open(pages["image"], width=1280, height=900)
    legend = "[...document.querySelector('figure').querySelectorAll('.legend b, .axis')].map((e) => e.textContent)"
    at_rest = browser.evaluate(legend)
    browser.evaluate("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = browser.evaluate(
        "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('.plot').getBoundingClientRect())"
    )
    move = {"type": "mouseMoved", "y": box[1] + box[3] / 2}
    browser.call("Input.dispatchMouseEvent", **move, x=box[0] + box[2] * 0.5)
    train, test, axis = browser.evaluate(legend)
    assert axis == "epoch 12"
    assert 0.4 < float(train) < 0.7
    assert 0.3 < float(test) < 0.6
    assert [train, test] != at_rest[:2]
    cursor = "document.querySelector('figure .cursor').getBoundingClientRect().left"
    assert browser.evaluate(cursor) == pytest.approx(box[0] + box[2] / 2, abs=1)
    browser.call("Input.dispatchMouseEvent", **(move | {"y": 1.0}), x=1)
    assert browser.evaluate(legend) == at_rest


def test_print_is_dark_on_white_even_in_a_dark_browser(browser, pages):
    browser.open(pages["image"], width=794, height=1123, is_dark=True)
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.evaluate("document.documentElement.scrollWidth") <= 794


def test_the_checks_can_fail(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><main><div style='width:500px'>x</div></main>"
        "<script>console.error('no'); null.x</script><img src='http://127.0.0.1:9/none.png'>"
    )
    browser.open(path, width=360, height=740)
    assert len(browser.complaints()) >= 2
    assert len(browser.requests()) == 2
    assert len(browser.evaluate(OVERFLOWING.replace("WIDTH", "360"))) == 1
