"""One headless browser for all tests of pages; where there is none they are skipped, or fail if it was asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds that a page may take on a busy machine before a test gives up."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if program is None or driver is None:
        reason = "needs chromium and chromedriver (Debian: chromium, chromium-driver)"
        if os.environ.get("INVEDIT_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900"),
        # Nothing is looked up or reported while tests run.
        *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    session.set_page_load_timeout(PATIENCE)
    session.set_script_timeout(PATIENCE)
    yield session
    session.quit()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    yield Page(browser)
    browser.get("about:blank")


class Page:
    """What tests do with a page. Everything waits until it is so, and fails after `PATIENCE` seconds."""

    def __init__(self, session: Any) -> None:
        self.session = session
        session.get_log("browser")

    def open(self, address: str) -> None:
        self.session.get(address)

    def all(self, selector: str) -> list[Any]:
        """Return what is there now."""
        return list(self.session.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """Wait for an element."""
        return self.until(lambda: next(iter(self.all(selector)), None), selector)

    def texts(self, selector: str) -> list[str]:
        """Return the texts of elements, hidden ones too."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
        return list(self.run(script, selector))

    def until(self, condition: Any, what: str = "") -> Any:
        """Wait until a condition is true; returns its value."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.session, PATIENCE, 0.05, [StaleElementReferenceException])
        return wait.until(lambda _: condition(), f"never came true: {what}")

    def click(self, selector: str) -> None:
        """Press an element as a script would; nothing is in the way of that."""
        self.run("arguments[0].click()", self.one(selector))

    def press(self, *keys: str) -> None:
        """Press keys wherever the focus is."""
        self.session.switch_to.active_element.send_keys(*keys)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.session.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Return errors of the console, such as scripts that were refused and pictures that were not found."""
        return [entry["message"] for entry in self.session.get_log("browser") if entry["level"] == "SEVERE"]
