"""A headless Chromium for tests of the pages, with a record of all that a page asks the network for."""

import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
)


@pytest.fixture(scope="module")
def chromium():
  """The browser that CHROMIUM names, one on the path, or Playwright's own.

  Skips where there is none; in CI (CI=1), which installs one, that is a failure.
  """
  try:
    from playwright import sync_api
  except ImportError:
    _missing("playwright is not installed; pip install playwright")
  with sync_api.sync_playwright() as playwright:
    opened = _launch(playwright)
    yield opened
    opened.close()


def _missing(why):
  pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)


def _launch(playwright):
  path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
  try:
    return playwright.chromium.launch(executable_path=path, args=list(FLAGS))
  except Exception as error:
    _missing(f"no browser: {str(error).splitlines()[0]}; install chromium, or set CHROMIUM")


class Requests(list):
  """URLs that a page asked for, and what its scripts complained about in `errors`."""

  def __init__(self, page):
    super().__init__()
    self.errors = []
    page.on("request", lambda request: self.append(request.url))
    page.on("pageerror", lambda error: self.errors.append(str(error)))
