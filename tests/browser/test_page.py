"""The page in a real Chromium, against the real server, with rendered smears."""

import base64
import csv
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import text_to_be_present_in_element
from selenium.webdriver.support.ui import Select, WebDriverWait

from pipeline.data import smears
from pipeline.model_file import similar_index
from tests import tiny_model
from tests.browser.chromium import browser, cards, choose, colours, resize, show_map, text, wait_for
from tests.server import ROOT, Server, running


def share(bar: WebElement) -> float:
    """How long a bar is drawn."""
    return float(str(bar.find_element(By.TAG_NAME, "progress").get_property("value")))


def press(page: webdriver.Chrome, *keys: str) -> WebElement:
    """Presses keys, wherever the focus is, and returns where it is then."""
    webdriver.ActionChains(page).send_keys(*keys).perform()
    return page.switch_to.active_element


def test_a_chosen_image_shows_its_class_its_bars_and_its_model(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    choose(page, images / "smear.jpg")
    [card] = cards(page, 1)
    verdict = text(card, ".verdict")
    assert verdict == "Pro-B ALL"
    assert text(card, ".wording").startswith(f"Resembles {verdict};")
    bars = card.find_elements(By.CSS_SELECTOR, ".bars li")
    assert [bar.text.split("\n")[0] for bar in bars] == [each.label for each in tiny_model.CLASSES]
    assert sum(share(bar) for bar in bars) == pytest.approx(1)
    assert text(card, ".bars .highest").startswith(verdict)
    assert "operating point of 40.0" in text(card, ".malignant")
    assert text(card, ".excluded") == "Cannot be excluded: Pro-B ALL."
    assert text(card, "figcaption") == "smear.jpg"
    preview = card.find_element(By.TAG_NAME, "img")
    assert WebDriverWait(page, 5).until(lambda _: preview.get_property("naturalWidth")) == 96
    card.find_element(By.TAG_NAME, "summary").click()
    assert "JPEG, 96 × 96 pixels" in text(card, "dl")


def test_the_page_says_what_it_is_not(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url)
    assert "no clinical meaning" in wait_for(page, "#synthetic").text
    assert "Not a medical device" in text(page, "#disclaimer")
    assert text(page, "#model").startswith("leukdetect, file ")


def test_the_page_tells_about_the_model(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url)
    page.find_element(By.CSS_SELECTOR, "#about summary").click()
    about = wait_for(page, "#about dl").text
    assert "balanced accuracy 90.0 %, on rendered images: no clinical meaning" in about
    assert "malignant from 40.0 % on" in about


# --- several images ---


def test_several_images_get_a_card_each_in_their_order_and_errors_are_in_words(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    choose(page, *(images / name for name in ("dark.png", "broken.jpg", "notes.txt", "smear.jpg")))
    dark, broken, notes, _ = cards(page, 4)
    assert text(dark, ".verdict") == "Not reported"
    assert text(dark, ".wording").startswith("Refer to a haematologist: the image is too dark")
    assert "The mean brightness is 0 of 255" in text(dark, ".reasons")
    assert text(broken, ".verdict") == "The image cannot be read"
    assert "truncated or corrupt" in text(broken, ".wording")
    assert text(notes, ".verdict") == "Not an image of a known type"
    assert "send JPEG" in text(notes, ".wording")
    expected = "4 images: 1 Pro-B ALL, 1 referred to a haematologist, 2 without an answer."
    assert text(page, "#summary") == expected
    said = page.find_element(By.ID, "said").get_property("textContent")
    assert str(said).replace("\u00a0", " ") == expected


def test_a_later_choice_goes_above_an_earlier_one(page: webdriver.Chrome, server: Server, images: Path) -> None:
    page.get(server.url)
    choose(page, images / "smear.jpg")
    cards(page, 1)
    choose(page, images / "dark.png", images / "notes.txt")
    assert [text(card, "figcaption") for card in cards(page, 3)] == ["dark.png", "notes.txt", "smear.jpg"]


def test_a_file_over_the_servers_limit_is_refused_in_words(
    page: webdriver.Chrome, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "huge.bmp").write_bytes(b"BM" + bytes(25_000_000))
    page.get(server.url)
    choose(page, tmp_path / "huge.bmp")
    [card] = cards(page, 1)
    assert "20" in text(card, ".wording")


# --- keys and rates ---


@pytest.fixture(scope="module")
def key_and_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    """A key that may send 60 requests a minute, five of them at once, and a server that asks for one."""
    folder = tmp_path_factory.mktemp("guarded")
    tiny_model.write(folder / "m.onnx", bias=70.0)
    make = [sys.executable, "-m", "serving.keys", "ward", "--role", "predict", "--per-minute", "60"]
    made = subprocess.run([*make, "--append", folder / "keys"], cwd=ROOT, check=True, capture_output=True, text=True)
    flags = ("--model", folder / "m.onnx", "--keys-file", folder / "keys", "--feedback-db", folder / "feedback.db")
    with running(folder, *map(str, flags)) as server:
        yield made.stdout.split()[0], server


def enter(page: webdriver.Chrome, key: str) -> None:
    """Types a key where the page asks for one."""
    wait_for(page, "#key input").send_keys(key, Keys.ENTER)


def test_a_key_is_asked_for_once_and_kept_for_the_tab(key_and_server: tuple[str, Server], images: Path) -> None:
    key, server = key_and_server
    with browser() as page:
        page.get(server.url)
        choose(page, images / "smear.jpg", images / "dark.png")
        enter(page, key)
        cards(page, 2)
        page.refresh()
        choose(page, images / "smear.jpg")
        [card] = cards(page, 1)
        assert text(card, ".verdict") == "Pro-B ALL"


def test_a_wrong_key_is_asked_for_again_and_to_cancel_ends_it(key_and_server: tuple[str, Server], images: Path) -> None:
    with browser() as page:
        page.get(key_and_server[1].url)
        choose(page, *[images / "smear.jpg"] * 4)
        enter(page, "wrong")
        WebDriverWait(page, 5).until(text_to_be_present_in_element((By.ID, "key-why"), "did not accept this key"))
        press(page, Keys.ESCAPE)
        assert text(cards(page, 1)[0], ".verdict") == "An API key is needed"
        assert text(page, "#summary").startswith("Stopped after 1 of 4.")


def test_over_the_rate_the_page_waits_says_so_and_can_be_stopped(
    key_and_server: tuple[str, Server], images: Path
) -> None:
    key, server = key_and_server
    with browser() as page:
        page.get(server.url)
        choose(page, *[images / "smear.jpg"] * 40)
        enter(page, key)
        waiting = "//h2[contains(., 'Too many requests. Trying again in 1')]"
        WebDriverWait(page, 20).until(lambda _: page.find_elements(By.XPATH, waiting))
        before = len(page.find_elements(By.CSS_SELECTOR, "#results .card[aria-busy=false]"))
        WebDriverWait(page, 20).until(  # it goes on by itself
            lambda _: len(page.find_elements(By.CSS_SELECTOR, "#results .card[aria-busy=false]")) > before + 1
        )
        stop = page.find_element(By.ID, "stop")
        assert text(page, "#progress label").endswith(" of 40 examined")
        stop.send_keys(Keys.ENTER)
        page.execute_async_script("setTimeout(arguments[0], 200)")  # those that wait for a second are not waited for
        assert not stop.is_displayed()
        answered = page.find_elements(By.CSS_SELECTOR, "#results .card")
        assert all(text(card, ".verdict") == "Pro-B ALL" for card in answered)
        assert text(page, "#summary").startswith(f"Stopped after {len(answered)} of 40.")
        assert page.switch_to.active_element.get_attribute("id") == "save"


# --- the map ---


def alpha(page: webdriver.Chrome, canvas: WebElement) -> list[list[int]]:
    """How opaque the map is, 0..255, near each corner, row by row."""
    script = """
    const canvas = arguments[0];
    const at = (x, y) => canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3];
    return [[at(0.125, 0.125), at(0.875, 0.125)], [at(0.125, 0.875), at(0.875, 0.875)]];
    """
    result: list[list[int]] = page.execute_script(script, canvas)
    return result


def test_the_map_lies_over_the_image_where_the_model_looked(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get(server.url)
    choose(page, images / "corner.png")
    [card] = cards(page, 1)
    canvas = show_map(card)
    Select(card.find_element(By.CSS_SELECTOR, ".map select")).select_by_visible_text("Pre-B ALL")  # blue, to tiny_model
    WebDriverWait(page, 5).until(lambda _: "Pre-B ALL" in str(canvas.get_attribute("aria-label")))
    assert canvas.get_attribute("aria-label") == "Map for Pre-B ALL: strongest at the lower left"
    assert alpha(page, canvas) == [[0, 0], [255, 0]]
    assert canvas.rect == card.find_element(By.CSS_SELECTOR, ".preview").rect
    assert "not evidence" in text(card, ".note")
    Select(card.find_element(By.CSS_SELECTOR, ".map select")).select_by_visible_text("Pro-B ALL")  # dark
    WebDriverWait(page, 5).until(lambda _: text(card, ".note").startswith("The map is empty:"))
    assert "Where the model looked" not in text(card, ".note")
    assert alpha(page, canvas) == [[0, 0], [0, 0]]


def test_the_slider_fades_the_map_and_the_button_hides_it(page: webdriver.Chrome, server: Server, images: Path) -> None:
    page.get(server.url)
    choose(page, images / "smear.jpg")
    [card] = cards(page, 1)
    canvas = show_map(card)
    slider = card.find_element(By.CSS_SELECTOR, ".map input")
    before = float(canvas.value_of_css_property("opacity"))
    slider.send_keys(Keys.HOME)
    assert before > 0
    assert canvas.value_of_css_property("opacity") == "0"
    card.find_element(By.CSS_SELECTOR, ".look").click()
    assert not canvas.is_displayed()
    assert not slider.is_displayed()


def test_where_the_browser_cannot_show_a_file_the_servers_overlay_takes_its_place(
    page: webdriver.Chrome, server: Server, images: Path
) -> None:
    page.get_log("browser")
    page.get(server.url)
    choose(page, images / "smear.tif")
    [card] = cards(page, 1)
    assert "cannot show a preview" in text(card, ".picture")
    overlay = show_map(card)
    assert WebDriverWait(page, 5).until(lambda _: overlay.get_property("naturalWidth"))
    assert not card.find_element(By.CSS_SELECTOR, ".opacity").is_displayed()
    assert page.get_log("browser") == []


@pytest.mark.parametrize("pictures", [True, False])
def test_similar_cases_stand_beside_the_map_with_pictures_where_there_are_some(
    page: webdriver.Chrome, server: Server, images: Path, tmp_path: Path, pictures: bool
) -> None:
    with ExitStack() as stack:
        if not pictures:
            tiny_model.write(tmp_path / "m.onnx", bias=70.0, index=tiny_model.index(thumbnails=False))
            server = stack.enter_context(running(tmp_path, "--model", str(tmp_path / "m.onnx")))
        look_at_similar_cases(page, server, images, pictures)


def look_at_similar_cases(page: webdriver.Chrome, server: Server, images: Path, pictures: bool) -> None:
    page.get_log("browser")
    page.get(server.url)
    choose(page, images / "corner.png")  # what is not black is blue: pre, to tiny_model's embedding
    [card] = cards(page, 1)
    assert not card.find_element(By.CSS_SELECTOR, ".similar").is_displayed()
    show_map(card)
    wait_for(card, ".similar li")
    cases = card.find_elements(By.CSS_SELECTOR, ".similar li")
    assert len(cases) == 5
    assert "Pre-B ALL" in cases[0].text
    assert "distance 0." in cases[0].text
    assert "need not be the same diagnosis" in text(card, ".similar")
    shown = [case.find_elements(By.TAG_NAME, "img") for case in cases]
    assert all(len(found) == pictures for found in shown)
    if pictures:
        WebDriverWait(page, 5).until(lambda _: all(image.get_property("naturalWidth") for [image] in shown))
        assert {image.get_property("naturalWidth") for [image] in shown} == {similar_index.SIDE}
        assert all(str(image.get_attribute("alt")).startswith("Training image ") for [image] in shown)
    assert page.get_log("browser") == []
    card.find_element(By.CSS_SELECTOR, ".look").click()
    assert not card.find_element(By.CSS_SELECTOR, ".similar").is_displayed()


def test_without_an_index_no_similar_cases_are_spoken_of(page: webdriver.Chrome, images: Path, tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx", bias=70.0)
    with running(tmp_path, "--model", str(tmp_path / "m.onnx")) as server:
        page.get(server.url)
        choose(page, images / "smear.jpg")
        [card] = cards(page, 1)
        show_map(card)
        WebDriverWait(page, 5).until(lambda _: "not evidence" in text(card, ".note"))
        assert not card.find_element(By.CSS_SELECTOR, ".similar").is_displayed()


# --- what is done with answers ---


def test_the_results_as_csv_hold_answers_and_errors_and_run_no_formula(
    page: webdriver.Chrome, server: Server, images: Path, tmp_path: Path
) -> None:
    smear = (images / "smear.jpg").read_bytes()
    evil = tmp_path / '=cmd("x"), Müller.jpg'
    evil.write_bytes(smear)
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.get_log("performance")
    page.get(server.url)
    choose(page, evil, images / "dark.png", images / "notes.txt")
    answered, dark, notes = cards(page, 3)
    page.find_element(By.ID, "save").click()
    [file] = WebDriverWait(page, 10).until(lambda _: list(tmp_path.glob("leukdetect-*.csv")))
    raw = file.read_bytes().decode("utf-8-sig")
    assert raw.count("\r\n") == raw.count("\n") == 4
    rows = list(csv.DictReader(raw.splitlines(keepends=True), strict=True))
    assert [row["file"] for row in rows] == [f"'{evil.name}", "dark.png", "notes.txt"]
    assert [row["decision"] for row in rows] == ["report", "refer", "error"]
    first, second, third = rows
    assert (first["class"], first["label"], first["reasons"]) == ("pro", text(answered, ".verdict"), "")
    assert first["image_sha256"] == hashlib.sha256(smear).hexdigest()
    assert (first["model"], first["model_version"], first["precision"]) == ("leukdetect", "", "fp32")
    assert first["synthetic_model"] == "true"
    assert sum(float(first[f"probability_{each.key}"]) for each in tiny_model.CLASSES) == pytest.approx(1, abs=1e-5)
    assert float(first["p_malignant"]) == pytest.approx(1 - float(first["probability_benign"]), abs=1e-5)
    assert float(second["unlikeness"]) > 1
    assert second["reasons"] == "too_dark; unlike_training_images"
    assert (third["error"], third["class"]) == (text(notes, ".verdict"), "")
    assert third["error_detail"] == text(notes, ".wording")
    for row, card in ((first, answered), (second, dark)):
        assert row["request_id"] in str(card.find_element(By.TAG_NAME, "dl").get_property("textContent"))
    # The file names are known to this browser alone.
    sent = [each["message"] for each in page.get_log("performance") if '"Network.requestWillBeSent' in each["message"]]
    assert sent
    assert not any("ller.jpg" in each or "dark.png" in each for each in sent)


def test_no_beginning_of_a_file_name_makes_a_formula_of_it(page: webdriver.Chrome, server: Server) -> None:
    page.get(server.url)
    signs = "=+-@\t\r＝＋－＠"
    script = """
    const [signs, done] = arguments;
    import("/static/csv.js").then(({ toCsv }) => {
      const problem = { title: "No", detail: "no", requestId: "1" };
      done(toCsv([...signs].map((sign) => ({ file: { name: `${sign}1` }, problem })), []));
    });
    """
    rows = list(
        csv.DictReader(io.StringIO(page.execute_async_script(script, signs).removeprefix("\ufeff"), newline=""))
    )
    assert [row["file"] for row in rows] == [f"'{sign}1" for sign in signs]


def test_a_confirmed_diagnosis_is_sent_and_thanked_for(page: webdriver.Chrome, server: Server, images: Path) -> None:
    page.get(server.url)
    choose(page, images / "smear.jpg")
    [card] = cards(page, 1)
    card.find_element(By.TAG_NAME, "summary").click()
    form = card.find_element(By.CSS_SELECTOR, ".feedback")
    for label, answer in (("Pre-B ALL", "The model had Pro-B ALL highest."), ("Pro-B ALL", "The model agreed.")):
        Select(form.find_element(By.TAG_NAME, "select")).select_by_visible_text(label)
        form.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(page, 5).until(text_to_be_present_in_element((By.CSS_SELECTOR, "output"), f"Thank you. {answer}"))


# --- how it is reached ---

DROP = """
const transfer = new DataTransfer();
for (const [name, base64] of Object.entries(arguments[0])) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
}
const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
document.querySelector("#drop").dispatchEvent(drop);
"""


@pytest.mark.parametrize("names", [["dropped.jpg"], ["first.jpg", "second.jpg", "third.jpg"]], ids=["one", "many"])
def test_dropped_images_are_examined(page: webdriver.Chrome, server: Server, names: list[str]) -> None:
    page.get(server.url)
    wait_for(page, "#synthetic")
    content = base64.b64encode(smears.golden(1, 96, 3)[0]).decode()
    page.execute_script(DROP, dict.fromkeys(names, content))
    found = cards(page, len(names))
    assert [text(card, "figcaption") for card in found] == names
    assert all(text(card, ".wording").startswith("Resembles") for card in found)


def test_the_keyboard_alone_gets_everywhere(page: webdriver.Chrome, server: Server, images: Path) -> None:
    page.get(server.url)
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    focused = page.switch_to.active_element
    assert focused.get_attribute("id") == "files"
    focused.send_keys(str(images / "smear.jpg"))
    [card] = cards(page, 1)
    assert press(page, Keys.TAB).get_attribute("id") == "save"
    assert press(page, Keys.TAB).text == "Show where the model looked"
    assert press(page, Keys.ENTER).text == "Hide the map"
    canvas = wait_for(card, ".picture canvas")
    assert press(page, Keys.TAB).tag_name == "select"
    slider = press(page, Keys.TAB)
    assert slider.accessible_name == "Opacity"
    press(page, Keys.END)
    assert canvas.value_of_css_property("opacity") == "1"
    assert press(page, Keys.TAB).tag_name == "summary"
    press(page, Keys.ENTER)
    assert card.find_element(By.TAG_NAME, "details").get_property("open")
    assert press(page, Keys.TAB).accessible_name == "Confirmed diagnosis"
    assert press(page, Keys.TAB).text == "Send"
    assert press(page, Keys.TAB).text == "About this model"


@pytest.mark.parametrize("width", [320, 360, 550])  # 400 % and 200 % zoom, and a phone
def test_a_narrow_window_needs_no_sideways_scrolling(
    page: webdriver.Chrome, server: Server, images: Path, width: int
) -> None:
    try:
        resize(page, width, 740)
        page.get(server.url)
        choose(page, images / "smear.jpg", images / "dark.png", images / "notes.txt")
        for card in cards(page, 3)[:2]:
            show_map(card)
        for summary in page.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        wait_for(page, "#about dl")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        resize(page, 1100, 900)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_asks_nothing_of_elsewhere_and_breaks_no_policy(
    page: webdriver.Chrome, server: Server, path: str
) -> None:
    page.get_log("performance")
    page.get_log("browser")
    page.get(server.url + path)
    WebDriverWait(page, 10).until(
        lambda _: page.find_elements(By.CSS_SELECTOR, "#synthetic:not([hidden]), .opblock-summary")
    )
    urls = {
        entry["message"].partition('"url":"')[2].partition('"')[0]
        for entry in page.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    }
    asked = {url for url in urls if not url.startswith(("data:", "blob:"))}
    assert asked
    assert all(url.startswith(server.url) for url in asked), asked
    assert page.get_log("browser") == []


def test_colours_follow_the_system(page: webdriver.Chrome, server: Server) -> None:
    grounds = []
    for scheme in ("dark", "light"):
        colours(page, scheme)
        page.get(server.url)
        grounds.append(page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
    assert grounds[0] != grounds[1]


def test_a_server_that_went_away_is_said_in_words(page: webdriver.Chrome, images: Path, tmp_path: Path) -> None:
    tiny_model.write(tmp_path / "m.onnx")
    flags = ("--model", str(tmp_path / "m.onnx"), "--feedback-db", str(tmp_path / "feedback.db"))
    with running(tmp_path, *flags) as server:
        page.get(server.url)
        wait_for(page, "#synthetic")
        server.stop()
    choose(page, images / "smear.jpg")
    [card] = cards(page, 1)
    assert text(card, ".verdict") == "No answer"
    assert "cannot be reached" in text(card, ".wording")


def test_behind_a_proxys_prefix_the_page_its_maps_and_the_docs_work(
    page: webdriver.Chrome, images: Path, tmp_path: Path
) -> None:
    tiny_model.write(tmp_path / "m.onnx", bias=70.0)
    with running(tmp_path, "--model", str(tmp_path / "m.onnx"), "--path-prefix", "/lab/leukdetect") as server:
        page.get(f"{server.url}/lab/leukdetect")  # the slash comes by a redirect
        choose(page, images / "smear.jpg")
        [card] = cards(page, 1)
        assert text(card, ".verdict") == "Pro-B ALL"
        show_map(card)
        page.find_element(By.LINK_TEXT, "API").click()
        assert page.current_url == f"{server.url}/lab/leukdetect/docs"
        assert "LeukDetect" in wait_for(page, "#swagger-ui .title").text
        assert wait_for(page, "#swagger-ui .servers option").get_attribute("value") == "/lab/leukdetect"
        page.get(f"{server.url}/lab/leukdetect/status")
        page.find_element(By.LINK_TEXT, "Page").click()
        assert page.current_url == f"{server.url}/lab/leukdetect/"
