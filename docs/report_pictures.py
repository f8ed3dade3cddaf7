"""The pictures of docs/report.md: `python docs/report_pictures.py RUN`, of a run of configs/digits.yaml."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = {
    "report-light": (1280, 1500, "light"),
    "report-dark": (1280, 1500, "dark"),
    "report-narrow": (390, 1500, "light"),
}
"""By name: width, height, colours."""


def main(run: str) -> None:
    folder = Path(__file__).with_name("images")
    folder.mkdir(exist_ok=True)
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, colours) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            page.goto((Path(run).resolve() / "report.html").as_uri())
            page.wait_for_selector(".uplot")
            page.screenshot(path=str(folder / f"{name}.png"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
