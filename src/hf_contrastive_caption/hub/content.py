"""What a model card says beyond what the trainer knows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from hf_contrastive_caption.data.images import BadImageError, open_image
from hf_contrastive_caption.evaluation.report import CaptionerReport

if TYPE_CHECKING:
    from hf_contrastive_caption.report.comparison import CaptionerComparison

MAX_EXAMPLES = 12
"""Images that a card shows at most."""


@dataclass(frozen=True)
class CardExample:
    """An image with its captions before and after the tuning.

    Attributes:
        image: The image, see :func:`caption_images`. The card gets a small copy that is encoded anew.
        before: What the reference says.
        after: What the tuned captioner says.
    """

    image: Any = field(repr=False)
    before: str
    after: str


@dataclass(frozen=True)
class CardContent:
    """What a model card says beyond what the trainer knows; what is not given is not in the card, which says so.

    Attributes:
        before: What was measured of the reference.
        after: What was measured of the tuned captioner on the same images.
        examples: Images with captions before and after, of which the first twelve are shown. **They are published**:
            leave them out for images that are private or may not be passed on.
        data_name: What the training data is called; found for a data set of the Hub.
        data_license: Its licence, in words; found where the data set knows it.
        evaluation_data: What the images are called that ``before`` and ``after`` were measured on.
        license: Licence of the model, an identifier of the Hub such as ``"apache-2.0"``, or its name.
        language: Language of the captions, ``"en"`` for one.
    """

    before: CaptionerReport | None = None
    after: CaptionerReport | None = None
    examples: Sequence[CardExample] = ()
    data_name: str | None = None
    data_license: str | None = None
    evaluation_data: str | None = None
    license: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        """Check that the reports belong together and the examples open: a card is written at the end of a training.

        Raises:
            ValueError: If there is a report of the reference alone, the two are on other images, or an example does
                not open.
        """
        if self.before is not None and self.after is None:
            raise ValueError("a card was given a report of the reference (before) and none of the tuned model (after)")
        if self.before is not None and self.after is not None:
            self.after.compare(self.before)
        for number, example in enumerate(self.examples[:MAX_EXAMPLES]):
            try:
                open_image(example.image)
            except BadImageError as error:
                raise BadImageError(f"example {number} of the model card: {error}") from error

    @classmethod
    def of(cls, comparison: CaptionerComparison, *, examples: int = MAX_EXAMPLES, **others: Any) -> CardContent:
        """The content of a card from a comparison of the captioner with its reference.

        Args:
            comparison: What ``trainer.compare_with_reference`` or ``compare_captioners`` gave.
            examples: How many of its images the card shows; 0 for none.
            **others: Other attributes.
        """
        shown = [
            CardExample(Image.open(io.BytesIO(image.thumbnail)), image.reference.text, image.target.text)
            for image in comparison.images[:examples]
        ]
        return cls(comparison.reference, comparison.target, tuple(shown), **others)
