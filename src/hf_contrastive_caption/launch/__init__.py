"""Ready configs for ``accelerate launch``: DDP, FSDP2, ZeRO-2 and ZeRO-3."""

from hf_contrastive_caption.launch.files import accelerate_config, shipped_configs

__all__ = ["accelerate_config", "shipped_configs"]
