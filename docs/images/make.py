"""Make the pictures of the report page from an evaluation that was run: `python docs/images/make.py REPORT.html`.

It needs chromium and chromedriver on the PATH, and selenium and pillow (`pip install -e '.[dev]' pillow`). The pictures
here are of the quickstart: `lastmile quickstart`, then give runs/quickstart/evaluate/report.html.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
# Of the sampled outputs, those in which something is marked.
SAMPLED = """
for (const label of document.querySelectorAll("#columns label"))
  if (label.firstChild.checked !== label.textContent.endsWith(", sampled")) label.click();
const marks = document.getElementById("marks");
marks.value = "strange";
marks.dispatchEvent(new Event("change"));
"""
PICTURES = {  # name: (scheme, width, height, what is done first, what is at the top)
    "report-light": ("light", 1280, 1125, "", "body"),
    "report-dark": ("dark", 1280, 1125, "", "body"),
    "report-phone": ("light", 390, 1000, SAMPLED, "#count"),
}
SCALE = 1.5  # pixels of the picture for each of the page's


def main() -> None:
    """Shoot every picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--to", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        browser = start(profile)
        try:
            for name, how in PICTURES.items():
                png = shoot(browser, arguments.report.resolve().as_uri(), *how)
                size = save(png, arguments.to / f"{name}.png")
                print(f"{name}.png: {size / 1000:.0f} kB")
        finally:
            browser.quit()


def start(profile: str):
    """A headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def shoot(browser, page: str, scheme: str, width: int, height: int, first: str, top: str) -> bytes:
    """A picture of a page in a scheme and a window, after a script ran and what is at the top was scrolled there."""
    from selenium.webdriver.support.wait import WebDriverWait

    window = {"width": width, "height": height, "deviceScaleFactor": SCALE, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(page)
    loaded = "return document.readyState === 'complete'"  # the driver may go on before
    WebDriverWait(browser, 60).until(lambda browser: browser.execute_script(loaded))
    browser.execute_script(first)
    browser.execute_script("document.querySelector(arguments[0]).scrollIntoView()", top)
    return browser.get_screenshot_as_png()


def save(png: bytes, path: Path) -> int:
    """Write a picture with 256 colours, which a page hardly has; the bytes it takes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.stat().st_size


if __name__ == "__main__":
    main()
