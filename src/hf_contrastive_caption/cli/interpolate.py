"""What ``contrastive-caption interpolate`` does."""

from __future__ import annotations

from pathlib import Path

from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.console import no_other_progress_bars
from hf_contrastive_caption.interpolation import interpolate_captioners


def write_between(start: str, tuned: str, share: float, out: Path) -> None:
    """Write a captioner between two.

    Args:
        start: Folder or repository of the one that the tuning began with.
        tuned: Of what it became.
        share: How far from the first to the second, from 0 to 1.
        out: A folder that is not there, or empty.

    Raises:
        WrongUseError: If there is something in the folder.
    """
    if out.exists() and any(out.iterdir()):
        raise WrongUseError(f"--out {out} holds files already; give a new folder, so that no captioner is overwritten")
    with no_other_progress_bars():
        interpolate_captioners(start, tuned, share, device=None).save_pretrained(out)
    print(f"{out}: {share:g} of the way from {start} to {tuned}")
