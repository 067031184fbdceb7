"""A disk that is really full: the run says so, and goes on once there is room."""

import subprocess

import pytest
import torch

from lastmile_trl import checkpoints, run_folder

from ..conftest import make_rows, write_jsonl
from .processes import logged, said, start, weights, write_recipe


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds little, and a function that makes it hold more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(small_disk, tmp_path, tiny_model_folder):
    disk, grow = small_disk
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    settings = {"max_steps": 12, "save_total_limit": None}
    write_recipe(tmp_path, "whole", "grpo", tiny_model_folder, training=settings)
    write_recipe(tmp_path, "full", "grpo", tiny_model_folder, training={**settings, "output_dir": str(disk / "run")})
    assert start(tmp_path, "whole").wait() == 0, said(tmp_path, "whole")
    assert start(tmp_path, "full").wait() == 1, said(tmp_path, "full")
    assert "Error: The disk is full, so checkpoint-" in said(tmp_path, "full")
    assert "Traceback" not in said(tmp_path, "full")
    kept = checkpoints.newest(disk / "run")
    assert kept is not None and not list((disk / "run").glob("broken-*"))
    grow()
    assert start(tmp_path, "full").wait() == 0, said(tmp_path, "full")
    whole = tmp_path / "runs" / "whole"
    assert logged(disk / "run") == logged(whole)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(disk / "run").items())


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_evaluation_leaves_a_trained_model(small_disk, tmp_path, tiny_model_folder):
    disk, grow = small_disk
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    settings = {"max_steps": 2, "save_strategy": "no", "output_dir": str(disk / "run")}
    write_recipe(tmp_path, "full", "grpo", tiny_model_folder, training=settings)
    grow()
    assert start(tmp_path, "full").wait() == 0, said(tmp_path, "full")
    page = (disk / "run" / "report.html").read_bytes()
    file = tmp_path / "full.yaml"
    file.write_text(file.read_text().replace("max_new_tokens: 8", "max_new_tokens: 7"))
    fill = disk / "other"
    with pytest.raises(OSError), fill.open("wb", buffering=0) as other:
        while True:
            other.write(b"0" * 4096)
    assert start(tmp_path, "full").wait() == 1
    said_last = said(tmp_path, "full")
    assert f"Error: The disk is full, so {disk / 'run'} could not be finished (" in said_last
    assert "free some room; the same command then goes on with what is missing." in said_last
    assert (disk / "run" / "report.html").read_bytes() == page
    assert not list((disk / "run").glob("*.[0-9]*"))
    fill.unlink()
    assert start(tmp_path, "full").wait() == 0, said(tmp_path, "full")
    assert run_folder.finished(disk / "run")
