"""The page in a real browser, every control of it; its API; who can use it."""

from pathlib import Path

import httpx
import pytest
from support.chromium import chromium, outside
from support.one_shot_model import make_model, random_image
from support.tiny_vit import make_vit

from splice_ff.images import load_image, save_image
from splice_ff.vit.features import ViTFeatures

pytest.importorskip("gradio", reason="needs the extra [app]")
from splice_ff.app.page import launch_page
from splice_ff.app.work import Work

PATIENCE = 30_000


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

    def __init__(self, browser, url, width=1300):
        self.page = browser.new_context(viewport={"width": width, "height": 850}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.outside = outside(self.page)
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector("#paint")

    def upload(self, where, file):
        self.page.set_input_files(f"#{where} input[type=file]", file)
        self.page.wait_for_selector(f"#{where} img")

    def shown(self):
        image = self.page.query_selector("#output img")
        return image and image.get_attribute("src")

    def slide(self, where, key):
        slider = self.page.locator(f"#{where} input[type=range]")
        slider.focus()
        slider.press(key)
        slider.dispatch_event("pointerup")

    def use(self, button, text):
        """Click it and wait for a message; Stop can be used meanwhile."""
        self.page.click(f"#{button}")
        self.page.wait_for_selector("#stop:not([disabled])")
        self.wait_for(text)

    def wait_for(self, text, where="#message"):
        script = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
        self.page.wait_for_function(script, arg=[where, text])


def test_a_visit_that_clicks_every_control_examples_first(browser, url, images):
    visitor = Visitor(browser, url)
    page = visitor.page
    for row in range(2):  # a second time, too: choosing an example makes the inputs anew
        page.locator(".tr-body").nth(row).click()
        page.wait_for_selector("#structure img")
        page.wait_for_selector("#appearance img")
        before = visitor.shown()
        page.click("#paint")
        page.wait_for_function("src => document.querySelector('#output img')?.getAttribute('src') != src", arg=before)
        visitor.wait_for("Painted in")
    page.click("#paint")
    visitor.use("refine", "Best image")
    for where, file in zip(("structure", "appearance"), images, strict=False):
        page.locator(f"#{where} .icon-button-wrapper button").last.click()
        visitor.upload(where, file)
    page.click("#paint")
    visitor.wait_for("Painted in")

    for where, key in (("strength", "Home"), ("strength", "End"), ("steps", "Home")):
        visitor.slide(where, key)
    page.get_by_text("Mix in a second look").click()
    visitor.upload("second", images[0])
    visitor.slide("mix", "End")
    visitor.use("refine", "Best image")
    page.get_by_role("tab", name="Per-pair").click()
    visitor.slide("pair-steps", "Home")
    visitor.use("optimize", "Step ")
    page.click("#stop")
    visitor.wait_for("Stopped")
    page.get_by_role("tab", name="Why does it look like this?").click()
    page.click("#explain")
    for where in ("matches", "components"):
        page.wait_for_selector(f"#{where} img")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith(".png")
    assert "rror" not in page.inner_text("body") and not visitor.outside


@pytest.mark.parametrize("width", [1300, 390], ids=["desktop", "phone"])
def test_anybody_can_use_it(browser, url, images, width):
    """No violation that axe finds; on a telephone Paint is on the first screen, and the result after painting."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    visitor = Visitor(browser, url, width)
    page = visitor.page
    page.wait_for_timeout(500)
    assert [v["id"] for v in axe.run(page).response["violations"]] == []
    for where, file in zip(("structure", "appearance"), images, strict=False):
        visitor.upload(where, file)
    assert page.locator("#paint").bounding_box()["y"] < 800 and page.locator("#stop").is_disabled()
    page.click("#paint")
    visitor.wait_for("Painted in")
    page.wait_for_timeout(1000)
    place = page.locator("#output img").bounding_box()
    assert place["y"] >= 0 and place["y"] + place["height"] < 850
    assert [v["id"] for v in axe.run(page).response["violations"]] == []
    assert page.eval_on_selector_all("img:not([alt])", "found => found.length") == 0


def test_the_api_is_what_is_named_and_nothing_else(url, images, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(url, verbose=False, download_files=str(tmp_path))
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert named.keys() == {"/transfer", "/refine", "/optimize", "/explain"}
    pair = {"structure": handle_file(str(images[0])), "appearance": handle_file(str(images[1]))}
    painted, _, message = client.predict(**pair, strength=0.5, size=128, api_name="/transfer")
    assert load_image(painted).size == (64, 80) and message.startswith("Painted in")
    assert load_image(client.predict(**pair, api_name="/transfer")[0]).size == (64, 80)
    refined, _, message = client.predict(**pair, steps=10, api_name="/refine")
    assert load_image(refined).size == (64, 80) and "Best image" in message
    with pytest.raises(AppError, match="not an image"):
        client.predict(**pair | {"structure": handle_file(str(images[2]))}, api_name="/transfer")
    with pytest.raises((AppError, ValueError)):
        client.predict(**pair, size=100_000, api_name="/transfer")
    for name in ("transfer_if_ready", "transfer_if_ready_1", "answer", "load_example", "lambda"):
        reply = httpx.post(f"{url}gradio_api/call/{name}", json={"data": []})
        assert reply.status_code >= 400, name


def test_the_documented_example_runs(url, images, tmp_path, monkeypatch, capsys):
    for name, file in zip(("cat", "raccoon"), images, strict=False):
        save_image(tmp_path / f"{name}.jpg", load_image(file).rgb)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "page.md").read_text(encoding="utf-8")
    code = page.split("```py\n")[1].split("```")[0]
    assert "http://127.0.0.1:7860" in code
    exec(code.replace("http://127.0.0.1:7860", url).replace("steps=100", "steps=10"))
    assert "Best image" in capsys.readouterr().out


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
