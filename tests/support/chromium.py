"""Debian's Chromium, driven by Playwright, and what a person types into it to log in."""

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from infra.stack import config as configuration
from tests.support.service_stack import Stack, needs

_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
_FLAGS += ("--disable-background-networking", "--disable-component-update")


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A headless browser."""
    needs("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[*_FLAGS, *flags])
        yield browser
        browser.close()


def logged_in(browser: Browser, stack: Stack) -> BrowserContext:
    """A session that knows the passwords: Prefect's typed into its page, MLflow's given when the browser asks."""
    user, password = configuration.mlflow_login(stack.config).values()
    known = {"username": user, "password": password, "origin": stack.config.url("mlflow")}
    context = browser.new_context(viewport={"width": 1500, "height": 3200}, http_credentials=known)
    page = context.new_page()
    page.goto(f"{stack.config.url('prefect')}/login")
    page.get_by_placeholder("admin:pass").or_(page.locator("input")).first.fill(
        configuration.prefect_login(stack.config)
    )
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/login" not in url)
    page.close()
    return context
