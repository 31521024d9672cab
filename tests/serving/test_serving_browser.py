"""The page in headless Chromium, against a server with sessions of clients."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, request_of, running_server
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.envs import get_task
from jat_engine.serving import codec
from jat_engine.serving.demo import Demo
from jat_engine.serving.page import add_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE = "<img src=x onerror=alert(1)>"
TASK = "babyai-go-to-obj"

if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tiny_folder: Path) -> Iterator[RunningServer]:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    options = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}
    load: Callable[[], JatEngine] = lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **options)  # noqa: E731
    with running_server(load, max_sessions=8, keys=("secret",)) as running:
        demo = Demo(running.service, [get_task(TASK)], 1, ("secret",))
        running.call(lambda: add_page(running.server, running.server._describe, demo))
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


def test_the_page_shows_sessions_and_play(server: RunningServer, browser: Any) -> None:
    expect = playwright.expect
    expect.set_options(timeout=60_000)
    address = f"http://127.0.0.1:{server.port}"
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    foreign: list[str] = []
    problems: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else foreign.append(r.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(address)

    expect(page.locator("#gate")).to_be_visible()
    page.fill("#key", "wrong")
    page.press("#key", "Enter")
    expect(page.locator("#refused")).to_be_visible()
    problems[:] = [one for one in problems if "401" not in one]
    page.fill("#key", "secret")
    page.press("#key", "Enter")
    expect(page.locator("#empty")).to_be_visible()

    with connect(server.url, compression=None, additional_headers={"Authorization": "Bearer secret"}) as websocket:
        websocket.recv()
        for name in ("atari_sampled_cw8", "continuous_cw9"):
            for t in range(3):
                websocket.send(codec.pack(request_of(EPISODE[name], t) | {"session_id": HOSTILE + name}))
                websocket.recv()
        cards = page.locator("article.session")
        expect(cards).to_have_count(2)
        expect(cards.first).to_contain_text(HOSTILE + "atari_sampled_cw8")
        expect(cards.first.locator(".facts div").first).to_contain_text("3")
        expect(cards.first.locator("img")).to_be_visible()
        expect(cards.last.locator("canvas")).to_be_visible()
        expect(page.locator("img[src=x]")).to_have_count(0)
        expect(page.locator("#sessions")).to_have_text("2 of 8")

    page.select_option("#task", TASK)
    page.fill("#seed", "3")
    page.click("#start")
    expect(page.locator("#frame")).to_be_visible()
    expect(page.locator("#f-step")).to_have_text("3")
    assert page.locator("#frame").evaluate("image => image.naturalWidth") == 256
    expect(page.locator("#f-text")).to_contain_text("go to")
    expect(page.locator("article.session .badge:visible")).to_have_text("demo")
    page.click("#stop")
    expect(page.locator("#frame")).to_be_hidden()
    page.close()
    assert foreign == problems == []


def test_the_page_follows_the_colour_scheme(server: RunningServer, browser: Any) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"http://127.0.0.1:{server.port}")
        colours.add(page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor"))
        page.close()
    assert len(colours) == 2
