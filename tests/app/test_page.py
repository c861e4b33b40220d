"""The page in a real browser: upload, paint, move a slider, refine and stop, a file that is no image, two visitors."""

import pytest
from support.chromium import chromium, outside
from support.one_shot_model import make_model, random_image
from support.tiny_vit import make_vit

from splice_ff.images import save_image
from splice_ff.vit.features import ViTFeatures

pytest.importorskip("gradio", reason="needs the extra [app]")
from splice_ff.app.page import launch_page
from splice_ff.app.work import Work

PATIENCE = 90_000


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    files = [save_image(folder / f"{i}.png", random_image(i, 64, 80)) for i in range(2)]
    (folder / "fake.png").write_text("no image")
    return [*files, folder / "fake.png"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    work = Work(make_model(ViTFeatures(make_vit())), tmp_path_factory.mktemp("page"))
    page, address = launch_page(work, port=0)
    yield address
    page.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Visitor:
    """Somebody with the page open."""

    def __init__(self, browser, url):
        self.page = browser.new_context(viewport={"width": 1300, "height": 1100}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.outside = outside(self.page)
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector("#paint")

    def upload(self, where, file):
        self.page.set_input_files(f"#{where} input[type=file]", file)
        self.page.wait_for_selector(f"#{where} img")

    def shown(self):
        return self.page.get_attribute("#output img", "src")

    def wait_for(self, text, where="#message"):
        script = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
        self.page.wait_for_function(script, arg=[where, text])


def test_a_visit(browser, url, images):
    visitor = Visitor(browser, url)
    visitor.upload("structure", images[0])
    visitor.upload("appearance", images[1])
    visitor.page.click("#paint")
    visitor.wait_for("Painted in")
    first = visitor.shown()

    slider = visitor.page.locator("#strength input[type=range]")
    slider.focus()
    slider.press("Home")
    slider.dispatch_event("pointerup")
    visitor.page.wait_for_function("src => document.querySelector('#output img').src !== src", arg=first)

    visitor.page.click("#refine")
    visitor.wait_for("Step ")
    visitor.page.click("#stop")
    visitor.page.wait_for_timeout(1500)
    stopped = visitor.page.inner_text("#message")
    visitor.page.wait_for_timeout(1500)
    assert visitor.page.inner_text("#message") == stopped and "Best image" not in stopped
    assert not visitor.outside


def test_what_is_no_image_gets_a_readable_message(browser, url, images):
    visitor = Visitor(browser, url)
    visitor.upload("structure", images[2])
    visitor.upload("appearance", images[1])
    visitor.page.click("#paint")
    visitor.wait_for("the structure image: not an image", "body")


def test_two_visitors_see_their_own_images(browser, url, images):
    visitors = [Visitor(browser, url) for _ in range(2)]
    for visitor, (structure, appearance) in zip(visitors, (images[:2], images[1::-1]), strict=True):
        visitor.upload("structure", structure)
        visitor.upload("appearance", appearance)
    for visitor in visitors:
        visitor.page.click("#paint")
    for visitor in visitors:
        visitor.wait_for("Painted in")
    assert visitors[0].shown() != visitors[1].shown()
