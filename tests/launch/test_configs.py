"""The shipped configs: Accelerate reads them, and what a captioner needs is in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from hf_contrastive_caption.launch import accelerate_config, shipped_configs
from tests.training import arguments

KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", list(KINDS))
def test_accelerate_reads_the_config(name: str) -> None:
    config = load_config_from_file(str(accelerate_config(name)))  # refuses unknown keys
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "no" and not config.use_cpu


@pytest.mark.parametrize("name", list(KINDS))
def test_all_settings_are_options_of_the_launcher(name: str) -> None:
    """Accelerate takes settings of engines without a look at their names."""
    config = load_config_from_file(str(accelerate_config(name)))
    options = vars(launch_command_parser().parse_args(["script.py"]))
    settings = {**config.fsdp_config, **config.deepspeed_config}
    assert set(settings) <= set(options)
    assert bool(settings) == (name != "ddp")


@pytest.mark.parametrize("name", list(KINDS))
def test_the_launcher_takes_the_config(name: str) -> None:
    words = ["--config_file", str(accelerate_config(name)), "--num_processes", "2", "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (args.num_processes, args.num_machines, args.main_process_port) == (2, 1, 0)
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == (
        name == "ddp",
        name == "fsdp2",
        name.startswith("zero"),
    )
    if name.startswith("zero"):
        assert args.zero_stage == int(name[-1])
        assert args.zero3_init_flag is False
        assert (args.zero3_save_16bit_model is True) == (name == "zero3")


def test_fsdp2_makes_the_plugin_that_a_captioner_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    settings = load_config_from_file(str(accelerate_config("fsdp2"))).fsdp_config
    for name, value in settings.items():  # as accelerate.utils.launch hands them to the processes
        monkeypatch.setenv(name.upper(), str(value))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.transformer_cls_names_to_wrap is None  # the trainer says them
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing


def test_names_and_paths(tmp_path: Path) -> None:
    assert shipped_configs() == sorted(KINDS)
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: 'NO'\n")
    assert accelerate_config(own) == own.resolve() == accelerate_config(str(own))
    for wrong in ("fsdp", str(tmp_path), str(tmp_path / "none.yaml")):
        with pytest.raises(ValueError, match="ddp, fsdp2, zero2, zero3, or the path"):
            accelerate_config(wrong)


def test_ddp_does_not_look_for_unused_weights_where_there_are_none(tmp_path: Path) -> None:
    """They are frozen, but maximum likelihood may drop whole layers."""
    found = [
        arguments(tmp_path, **options).ddp_find_unused_parameters
        for options in ({}, {"objective": "mle"}, {"ddp_find_unused_parameters": True})
    ]
    assert found == [False, None, True]
