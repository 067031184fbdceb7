"""The shipped accelerate configs, read by accelerate's own loader."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from lastmile_trl.launch import Launch
from lastmile_trl.recipe import shipped

FILES = sorted(shipped("accelerate_configs").rglob("*"))
EXPECTED = {  # name -> kind, processes, precision
    "cpu": ("NO", 1, "no"),
    "fsdp2": ("FSDP", 8, "bf16"),
    "multi_gpu": ("MULTI_GPU", 8, "bf16"),
    "multi_node": ("MULTI_GPU", 16, "bf16"),
    "single_gpu": ("NO", 1, "bf16"),
    "zero2": ("DEEPSPEED", 8, "bf16"),
    "zero3": ("DEEPSPEED", 8, "bf16"),
}


def head(path) -> str:
    """The comment a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def test_every_config_is_expected_here():
    assert [path.name for path in FILES] == [f"{name}.yaml" for name in EXPECTED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))  # refuses keys it does not know
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == EXPECTED[path.stem]
    assert config.compute_environment == "LOCAL_MACHINE"
    assert config.use_cpu is (path.stem == "cpu")
    assert config.num_machines == (2 if path.stem == "multi_node" else 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_starts_as_many_processes_as_it_says(path):
    assert Launch.choose(path.stem, None).processes == EXPECTED[path.stem][1]
    assert Launch.choose(path.stem, 3).processes == 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_two_runs_can_share_a_machine(path):
    if path.stem not in ("single_gpu", "multi_node"):  # one process needs no port; machines must agree on one
        assert load_config_from_file(str(path)).main_process_port == 0


def test_sharded_runs_save_a_whole_model():
    def read(name):
        return load_config_from_file(str(shipped("accelerate_configs") / f"{name}.yaml"))

    assert read("zero3").deepspeed_config["zero_stage"] == 3
    assert read("zero3").deepspeed_config["zero3_save_16bit_model"] is True
    assert read("zero2").deepspeed_config["zero_stage"] == 2
    assert read("fsdp2").fsdp_config["fsdp_version"] == 2
    assert read("fsdp2").fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_says_how_to_start_it(path):
    assert f"--accelerate {'my_' if path.stem == 'multi_node' else ''}{path.stem}" in head(path)
    if path.stem.startswith("zero"):
        assert "pip install 'lastmile-trl[deepspeed]'" in head(path)


def test_multi_node_says_what_to_fill_in():
    path = shipped("accelerate_configs") / "multi_node.yaml"
    config = load_config_from_file(str(path))
    for key in ("main_process_ip", "machine_rank"):
        assert key in head(path)
        assert getattr(config, key) is not None
