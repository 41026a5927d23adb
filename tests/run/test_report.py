"""The report: one page that a real browser opens, on a phone's width too, in colours that everybody tells apart."""

import html
import re
import shutil
import subprocess
from itertools import combinations

import numpy as np
import pytest

from rt3_tvm.cli.main import main
from rt3_tvm.report import figures

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'rt3-tvm[report]'")
BOARD = ("--device", "odroid-xu3", "--freqs", "1.4GHz,1GHz,0.8GHz", "--deadline", "1", "--rate", "20")


@pytest.fixture(scope="module")
def page(saved_checkpoint, tiny_bundle, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    accuracy = ("--accuracy", "0.9,0.89,0.88,0.87")
    assert main(["report", str(saved_checkpoint), "--bundle", str(tiny_bundle), "-o", str(out), *BOARD, *accuracy]) == 0
    return out


def test_everything_is_in_the_page(page):
    text = page.read_text()
    assert text.count("<svg") == 6 and text.count("<figure>") == 6
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", text.replace("xlink:href", "href")), (
        "something is elsewhere"
    )
    assert "<script" not in text and "default-src 'none'" in text
    text = html.unescape(text)
    for words in ("modelled: 90 uW", "modelled: RT3's constants", "given (--accuracy)", "Measured on this machine"):
        assert words in text


def test_without_a_bundle_it_says_what_is_not_measured(saved_checkpoint, tmp_path):
    out = tmp_path / "report.html"
    assert main(["report", str(saved_checkpoint), "-o", str(out), *BOARD]) == 0
    text = out.read_text()
    assert text.count("Not measured: pass --bundle") == 2 and text.count("<svg") == 4
    assert "accuracy unknown" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "7"], "--level 7: the checkpoint has levels 0 to 2"),
        (["--bundle", "nowhere.so"], "nowhere.so"),
        (["--battery", "0J"], "give it as 37800J"),
        (["--freqs", "1.4GHz,1GHz,0.85GHz"], "does not have 850MHz: its frequencies are 1.4GHz"),
    ],
)
def test_bad_reports_are_one_line(saved_checkpoint, tiny_bundle, tmp_path, arguments, message, capsys):
    out = tmp_path / "report.html"
    command = ["report", str(saved_checkpoint), "--bundle", str(tiny_bundle), "-o", str(out), *BOARD, *arguments]
    try:
        code = main(command)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1 and not out.exists()


@pytest.mark.slow
def test_a_browser_shows_it_on_a_phone(page, tmp_path):
    """A screenshot at 500 px, the least that Chromium's window takes: the palette is on it, nothing sticks out."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    shot = tmp_path / "phone.png"
    off = ("gpu", "quic", "background-networking", "component-update", "sync")
    flags = [
        "--headless",
        "--no-sandbox",
        "--no-first-run",
        "--hide-scrollbars",
        *(f"--disable-{what}" for what in off),
    ]
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'browser'}"]
    subprocess.run(
        [*command, "--window-size=500,3200", f"--screenshot={shot}", page.as_uri()],
        check=True,
        timeout=600,
        capture_output=True,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (3200, 500)
    for colour in figures.PALETTE[:4]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 12).sum() > 20, f"{colour} is not to be seen"
    assert (pixels[:, -4:] > 200).all(), "something is cut off at the right edge"
    ink = (pixels.min(axis=2) < 128).any(axis=1)
    assert ink[:300].any() and ink[1500:].any(), "the page is empty"


def simulated(colour, matrix):
    """Return CIE Lab of a colour as somebody with the deficiency sees it."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / [0.9505, 1.0, 1.089]]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_the_lines_are_told_apart_by_everybody(kind):
    """CIE76 above 10: several times what is just noticeable (2.3)."""
    seen = [simulated(c, DEFICIENCIES[kind]) for c in figures.PALETTE[:5]]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10
