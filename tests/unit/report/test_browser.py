"""Both pages in a real browser: no error on the console, and no scrolling sideways, on a desktop and on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from megatron_qwen3vl.config.load import load_config
from megatron_qwen3vl.data.shards import write_shard
from megatron_qwen3vl.report.inspect import inspect_path
from megatron_qwen3vl.report.page import write_report
from tests.unit.data.shard_helpers import LIMITS, document, image_part, model, picture, tokenizer, video_part
from tests.unit.report.report_run import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (390, 1280)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def looked_at(pages: list[Path], folder: Path) -> tuple[list[int], list[str]]:
    """Pixels by which each page, in a frame of each width, is wider than it; and what the console said.

    The frames are of the same origin, so that the page around them may measure.
    """
    frames = "".join(
        f'<iframe width="{width}" height="600" style="border:0" srcdoc="{escape(page.read_text())}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    script = """window.onload = () => { document.title = "wider " + [...document.querySelectorAll("iframe")].map(
        f => f.contentDocument.documentElement).map(e => e.scrollWidth - e.clientWidth).join(" ") + " end" }"""
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><title></title>{frames}<script>{script}</script>")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900"]
    command += ["--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (measured,) = re.findall(r"<title>wider ([-\d ]+) end", done.stdout)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return [int(number) for number in measured.split()], said


def test_both_pages_in_a_browser(tmp_path: Path) -> None:
    key = "x" * 300  # nothing to break it at
    media = {f"{i}.png": picture(300, 900, seed=i) for i in range(2)}
    wide = document("word " * 40, image_part("0.png"), video_part("0.png", "1.png"), key, domain="wide")
    write_shard(tmp_path / "0.tar", [(f"{key}{i}", {"json": wide, **media}) for i in range(3)])
    run = replace(load_config([]), model=model())
    inspect_path(tmp_path / "0.tar", run, tokenizer(), LIMITS, tmp_path / "packs.html")
    report = write_report(write_run(tmp_path / "run"))
    broken = tmp_path / "broken.html"
    broken.write_text("<p style='width:500px'>wide</p><script>undefined_name</script>")
    wider, said = looked_at([report, tmp_path / "packs.html"], tmp_path)
    assert wider == [0, 0, 0, 0] and said == []
    wider, said = looked_at([broken], tmp_path)  # the test sees what it looks for
    assert wider[0] > 100 and wider[1] == 0 and len(said) == len(WIDTHS)
