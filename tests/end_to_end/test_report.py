"""report.html as a browser shows it: a real run, a real browser."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.distributed.training import train_there
from tests.end_to_end.test_training import run
from tests.rank_pool import run_ranks

EVIL = "</script><img src=x onerror=document.title='owned'>"
DATA = f"""
import torch
class Points(torch.utils.data.Dataset):
    def __init__(self, split):
        self.classes = ({EVIL!r}, "b & \\"c\\"", "d")
        draws = torch.Generator().manual_seed(len(split))
        self.inputs, self.targets = torch.randn(48, 4, generator=draws), torch.arange(48) % 3
    def __len__(self):
        return 48
    def __getitem__(self, index):
        return self.inputs[index], int(self.targets[index])
"""
CONFIG = {
    "name": "points",
    "data": {"name": "points:Points"},
    "model": {"name": "mlp", "hidden": [4]},
    "batch": {"microbatches": 2, "global_size": 16},
    "train": {"duration": "4 epochs", "stop_after": "7 steps"},
    "tracking": {"wandb": {"mode": "disabled"}},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Begun on one rank without a launcher, and ended on two with one."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "points.py").write_text(DATA)
    (folder / "points.yaml").write_text(yaml.safe_dump(CONFIG))
    assert run_ranks(train_there, 1, folder, "points.yaml", "r") == [0]
    assert "Stopped at step 7 of 12" in (folder / "r/report.html").read_text()
    words = ("train.stop_after=null", "--run-dir", "r", "--nproc-per-node", "2")
    _, said = run(folder, "dist-train", "train", "points.yaml", *words)
    assert "  report      r/report.html" in said
    return folder / "r"


PHOTOS = {
    "name": "photos",
    "data": {"name": "image_folder", "train": "train", "eval": "eval", "eval_fraction": None, "image_size": 16},
    "augment": [{"name": "normalize", "mean": [0.45] * 3, "std": [0.25] * 3}],
    "model": {"name": "mlp", "hidden": [32]},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "batch": {"microbatches": 2, "global_size": 16},
    "train": {"duration": "8 epochs", "sanity_check": False},
    "eval": {"every": "8 epochs"},
    "tracking": {"worst_samples": 4, "wandb": {"mode": "disabled"}},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Of days and nights; a night lies among the days of the evaluation, under an evil name."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    dark = {"night": True, "day": False}
    files = [(f"{split}/{kind}/{n}.jpg", dark[kind]) for split in ("train", "eval") for kind in dark for n in range(16)]
    for name, is_dark in [*files, (f"eval/day/{EVIL.replace('</script>', '')}.jpg", True)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 100, (120, 160, 3)) + (0 if is_dark else 130)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name, "JPEG")
    (folder / "photos.yaml").write_text(yaml.safe_dump(PHOTOS | {"data": {**PHOTOS["data"], "root": str(folder)}}))
    assert run_ranks(train_there, 1, folder, "photos.yaml", "r") == [0]
    return folder / "r"


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no browser here: chromium missing (Debian: chromium)")
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Opened:
    """The page in a window of that size, until the test is over, and what it has asked for and complained of."""

    def __init__(self, browser, path: Path, width: int, **context) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, **context)
        self.asked, self.complaints = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.resolve().as_uri(), wait_until="load")
        self.path = path


WINDOWS = ((360, "dark"), (1440, "light"))
"""What fits hangs on the width, and what can be read on the colours; the other two are for the long suite."""


@pytest.mark.parametrize(
    "windows",
    [WINDOWS, pytest.param(((360, "light"), (1440, "dark")), marks=pytest.mark.long)],
    ids=["some", "others"],
)
def test_in_a_browser(browser, run_dir, photos, windows):
    """One start of the browser for all."""
    page = run_dir / "report.html"
    for width, scheme in windows:
        it_asks_for_nothing_fits_and_can_be_used_by_all(Opened(browser, page, width, color_scheme=scheme), width)
    its_parts_answer(Opened(browser, page, 1200).page)
    for width, scheme in windows:
        seen = Opened(browser, photos / "report.html", width, color_scheme=scheme)
        it_asks_for_nothing_fits_and_can_be_used_by_all(seen, width)
        the_wrong_label_is_the_first_of_the_worst_samples(seen.page)
    it_can_be_read_without_scripts_and_on_paper(Opened(browser, page, 800, java_script_enabled=False).page)


def it_asks_for_nothing_fits_and_can_be_used_by_all(seen, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    seen.page.wait_for_selector(".chart canvas")
    asked = [address for address in seen.asked if not address.startswith("data:")]
    assert asked == [seen.path.resolve().as_uri()] and seen.complaints == []
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert axe.run(seen.page).response["violations"] == []


def its_parts_answer(page):
    """All charts are drawn, anew on another axis; a column is sorted; names of the run's are text."""
    page.wait_for_selector(".chart canvas")
    data = json.loads(page.evaluate("document.getElementById('data').textContent"))
    assert page.locator(".chart canvas").count() == len(data["charts"]) >= 4
    assert data["marks"] == [{"step": 7, "text": "start 1, 2 ranks"}]
    for axis in ("epoch", "samples", "hours"):
        page.select_option("#axis", axis)
        assert page.locator(".chart canvas").count() == len(data["charts"])
    page.check("#log")
    first, names = "table.sortable tbody tr:first-child td:first-child", {EVIL, 'b & "c"', "d"}
    page.click("table.sortable thead th:first-child button")
    descending = page.inner_text(first)
    page.click("table.sortable thead th:first-child button")
    assert {descending, page.inner_text(first)} < names and descending != page.inner_text(first)
    assert page.locator("img").count() == 0 and page.title() == "points · r"


def the_wrong_label_is_the_first_of_the_worst_samples(page):
    cards = page.locator(".samples li")
    assert cards.count() == page.locator("img").count() == 4 and page.title() == "photos · r"
    assert EVIL.replace("</script>", "") + ".jpg" in cards.first.inner_text()
    assert cards.first.inner_text().startswith("day → night")
    sizes = page.evaluate("[...document.images].map((one) => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[96, 72]] * 4
    assert page.evaluate("JSON.parse(document.getElementById('data').textContent).run.worst.evaluation.length") == 4


def it_can_be_read_without_scripts_and_on_paper(page):
    assert page.locator("noscript svg polyline").count() >= 4
    assert page.locator(".headline").inner_text() == "Done"
    assert page.pdf().startswith(b"%PDF")


def test_the_command_writes_it_for_any_run_and_names_the_file(run_dir, tmp_path):
    said, _ = run(run_dir.parent, "dist-train", "report", "r/checkpoints/step-00000007")
    assert said == "r/report.html\n"
    said, _ = run(run_dir.parent, "dist-train", "report", "r", "--out", str(tmp_path / "x.html"))
    assert said == f"{tmp_path}/x.html\n" and (tmp_path / "x.html").read_text().startswith("<!doctype html>")
    for words, about in (("r/logs", "neither a run directory"), ("away", "does not exist")):
        _, complaint = run(run_dir.parent, "dist-train", "report", words, code=2)
        assert about in complaint and complaint.count("\n") == 1
    _, complaint = run(run_dir.parent, "dist-train", "report", "r", "--out", "away/x.html", code=14)
    assert "No such file" in complaint and complaint.count("\n") == 1


def test_runs_beside_each_other(run_dir, tmp_path, browser):
    """Another rate in the same seed: the same bits until it has had its effect. A page of both in a real browser."""
    folder = run_dir.parent
    words = ("optimizer.lr=0.9", "train.stop_after=7 steps")
    assert run_ranks(train_there, 1, folder, "points.yaml", str(tmp_path / "b"), *words) == [0]
    page = tmp_path / "c.html"
    said, _ = run(folder, "dist-train", "compare", "r", str(tmp_path / "b"), "--html", str(page))
    assert "optimizer.lr  0.1  0.9" in said and said.endswith(f"\n{page}\n")
    assert "loss and norm of the gradient are the same bits up to step 1; then loss differs: " in said
    said, _ = run(folder, "dist-train", "compare", "r", str(tmp_path / "b"), "--require-better", "--json", code=1)
    assert json.loads(said)["differing"] == {"optimizer.lr": {"A": 0.1, "B": 0.9}}
    _, complaint = run(folder, "dist-train", "compare", "r", "away", code=2)
    assert "does not exist" in complaint and complaint.count("\n") == 1
    for width in (360, 1440):
        it_asks_for_nothing_fits_and_can_be_used_by_all(Opened(browser, page, width), width)


def test_a_run_that_fails_has_a_page_that_says_why(tmp_path):
    (tmp_path / "points.py").write_text(DATA.replace("int(self.targets[index])", "[][index]"))
    (tmp_path / "points.yaml").write_text(
        yaml.safe_dump(CONFIG | {"train": {"duration": "1 epochs", "sanity_check": False}})
    )
    run(tmp_path, "dist-train", "train", "points.yaml", "--run-dir", "r", "--nproc-per-node", "1", code=10)
    page = (tmp_path / "r/report.html").read_text()
    assert "Failed" in page and "IndexError: list index out of range" in page
