"""A tiny captioner of every family, made from configs, seeded and offline, with its naive twins.

The naive twins are the few lines that a user of the model alone would write, nothing of the package in them.
"""

from tests.families.blip import BLIP
from tests.families.blip2 import BLIP2, BLIP2_T5
from tests.families.chat import GEMMA3, LLAVA, PALIGEMMA
from tests.families.common import Family
from tests.families.encoder_decoder import ENCODER_DECODERS
from tests.families.git import GIT
from tests.families.idefics3 import IDEFICS3, SMOLVLM
from tests.families.llava_next import LLAVA_NEXT, LLAVA_ONEVISION
from tests.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

FAMILIES = (
    *ENCODER_DECODERS,
    BLIP,
    GIT,
    LLAVA,
    GEMMA3,
    PALIGEMMA,
    BLIP2,
    BLIP2_T5,
    IDEFICS3,
    SMOLVLM,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
)

__all__ = ["FAMILIES", "Family"]
