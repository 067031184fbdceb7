"""What a user installs: the wheel holds the recipes and the configs, and works in an empty folder."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from lastmile_trl.recipe import shipped_names

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked: what an installation puts on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_works_in_an_empty_folder(installed, tmp_path):
    def run(*words):
        code = f"import sys; sys.path.insert(0, {str(installed)!r}); from lastmile_trl.cli import main; main()"
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [line.split()[0] for line in run("recipes").splitlines()]
    assert names == shipped_names()
    run("copy", "e2e", "mine")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["aggrevated.yaml", "grpo.yaml", "sft.yaml"]
    assert f"{installed}/lastmile_trl/accelerate_configs/zero2.yaml" in run(
        "run", "e2e/sft", "--dry-run", "--accelerate", "zero2"
    )


def test_the_wheel_holds_the_templates_and_nothing_of_the_tests(installed):
    shipped, ours = (
        sorted(path.name for path in (root / "lastmile_trl/templates").iterdir()) for root in (installed, ROOT)
    )
    assert shipped == ours and "report.js.jinja" in ours
    assert not (installed / "tests").exists()


def test_every_dependency_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    names = ("quantization", "tracking", "metrics", "endpoint", "peers", "dev")
    extras = [item for name in names for item in project["optional-dependencies"][name]]
    for requirement in [*project["dependencies"], *extras]:
        name = requirement.split(">=")[0].split("[")[0].replace("_", "-")
        assert name in pinned or name == "lastmile-trl", name


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_the_pictures_of_a_page_are_there_and_small(page):
    text, folder = (ROOT / page).read_text(encoding="utf-8"), (ROOT / page).parent
    pictures = [folder / name for name in re.findall(r'src(?:set)?="([^"]+)"', text)]
    assert len(pictures) >= 2
    assert all(picture.stat().st_size < 300_000 for picture in pictures)
