"""The training arguments."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformers import Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_contrastive_caption.captioners.vocabulary import DEFAULT_MAX_LOGITS_BYTES
from hf_contrastive_caption.config_checks import check_config, greater_is_better
from hf_contrastive_caption.evaluation.score import parse_score
from hf_contrastive_caption.precision import gpu_computes_in_bfloat16

T = TypeVar("T")


@dataclass
class ContrastiveCaptionConfig(Seq2SeqTrainingArguments):
    r"""Arguments of :class:`ContrastiveCaptionTrainer`.

    All of ``Seq2SeqTrainingArguments``, with the additions below. Inherited options that cannot work are refused with
    the reason. Four defaults differ: ``learning_rate`` is 1e-5, ``logging_steps`` 10, ``bf16`` is chosen by the
    device (autocast where a GPU has bfloat16, float32 elsewhere), and ``ddp_find_unused_parameters`` is ``False``
    except for maximum likelihood: weights without a gradient are frozen beforehand. ``train_sampling_strategy`` may
    be ``"random"``, ``"sequential"`` or ``"group_by_length"``, by the captions that are drawn for the epoch.

    Args:
        objective: ``"contrastive"`` for the contrastive caption loss, ``"mle"`` for maximum likelihood (the negative
            log-likelihood per token, with the dropout that the model has): to train a reference, and as a control.
            ``"introspective"`` compares a caption's likelihood for its own image with that for distractor images,
            which are fixed in advance, without a reference; see :func:`introspective_loss`.
        loss_type: What is made of the log-ratios of the contrastive objective: ``"contrastive"``, or one of its
            relatives ``"dpo"``, ``"infonce"`` and ``"nca"``; see the functions in ``losses``.
        num_negatives: :math:`K`, how many captions of other images each positive is compared with; 5 in the paper.
            With ``"introspective"`` the number of distractor images, each of which is encoded.
        noise_ratio: :math:`\nu`: log-ratios above :math:`\ln\nu` pass as those of right captions; 1 in the paper. Not
            the same as ``num_negatives``. For ``loss_type="contrastive"`` only.
        beta: Scale of the log-ratio; 1 in the paper.
        loss_terms: ``"both"``, or ``"positives"`` or ``"negatives"`` alone, for the paper's ablation. For
            ``loss_type="contrastive"`` only.
        mle_weight: Weight of a further term, the negative log-likelihood per token of the positives: so many times the
            loss of ``objective="mle"`` on the same captions, but without dropout. It needs no further forward.
        negatives: Which captions of other images negatives are: ``"shuffled"``, any, as in the paper; ``"nearest"``,
            captions of images that are near to the positive's; ``"mixed"``, some of these and the others shuffled.
            Evaluations keep shuffled ones. Not with streams.
        hard_negative_share: Share of near captions among the negatives of ``"mixed"``.
        hard_negative_schedule: ``"constant"``, or ``"linear"``: the share of near captions grows by equal steps, one
            each epoch, and is reached in the last.
        hard_negative_source: What makes images near: ``"images"``, that they look alike, by the states of the
            reference, or ``"captions"``, that their captions read alike, by their words.
        hard_negative_encoder: An image-text dual encoder (CLIP, SigLIP) that tells this instead, by name.
        hard_negative_pool: From how many of the nearest captions an image's are drawn.
        hard_negative_threshold: A near caption is refused, and the next nearest taken, if its CIDEr-D against the
            captions of the positive's image is higher: it may be true of this image. 10 refuses none but equal ones.
        hard_negative_index: ``"exact"`` compares all pairs of images; ``"faiss"`` finds most of the nearest by an
            index, for some 100,000 images and more without a GPU.
        captions_per_image: How many of its captions an image brings to an epoch, drawn anew every epoch, or ``"all"``.
        image_column: The column with images; found by its feature type if not given.
        caption_columns: The column or columns with captions; found by their types if not given.
        image_id_column: A column that tells which rows show one image; ``image_id`` if there is one, and else the
            bytes of the image.
        on_bad_image: ``"raise"`` names the row of an image that does not open, ``"skip"`` counts it and goes on.
        reservoir_size: How many captions of a stream are kept to draw negatives from.
        stream_sharding: How several processes share a training stream. ``"shards"``: each reads shards (files) of its
            own, whose number must be a multiple of the number of processes. ``"replicate"``: each reads all of the
            stream and keeps its share of the batches. ``"auto"``: the first where it is possible. Either way the
            stream goes round until ``max_steps``.
        dataset_num_proc: Processes for tokenizing the captions.
        max_caption_tokens: Longest caption in tokens, the end token included; the decoder's positions if not given.
        prompt: What a chat model is asked, ``"Describe the image."`` for one; it stands before each caption in the way
            of the model's chat template and is not scored. The prompt that the model was saved with if not given, and
            the image alone if there is none. Refused for a model that takes none.
        reference_prompt: The same for a ``reference_model``; the prompt that it was saved with if not given, and what
            the model is asked if there is none.
        packing: How captions are laid out, ``"auto"``, ``"packed"`` or ``"repeated"``; see :class:`Captioner`.
        max_logits_bytes: Largest size of the logits that are held at one time.
        freeze_vision_encoder: Freeze the vision encoder of the target. A reference with the same one (a copy, the same
            object, or equal weights) then shares it, and each image is encoded once for both.
        cache_vision_states: Compute the states of the frozen vision encoder once and read them from disk in every
            epoch, without opening an image. Not with augmentation or streams.
        precompute_reference: Score all positives and negatives of all epochs with the reference before the training
            begins, and release it. The scores are kept on disk and serve every run with the same data, draws and
            reference. Not with augmentation or streams.
        precomputed_dir: Folder for states, scores and neighbours that are computed ahead; the assets folder of the
            Hub's cache if not given.
        reference_refresh: When the reference is replaced by the target: ``"epoch"``, every so many steps, or never
            (``None``). The loss starts anew from its value for equal models.
        reference_mixup: How far a replacement goes: 1 is a copy of the target, less an exponential average that keeps
            ``1 - reference_mixup`` of what the reference was.
        eval_captions: How many images of the evaluation data, chosen by the seed, are captioned at each evaluation,
            which gives ``eval_cider_d``, ``eval_rouge_l``, ``eval_invented`` and ``eval_distinct_share``; 0 for none.
            ``generation_num_beams`` and ``generation_max_length`` (in new tokens) say how; 3 beams if not given.
        eval_retrieval_pool: How many of these images take part in self-retrieval, which gives ``eval_recall_at_1`` and
            others; all of them if not given, 0 for none.
        eval_score: A weighted sum of these measures, such as ``"cider_d + 2 * recall_at_1"``, logged as
            ``eval_score``. With ``metric_for_best_model="score"`` it chooses the best checkpoint; the validation loss
            and the likelihood choose wrongly by design.
        model_init_kwargs: Arguments of ``from_pretrained`` for a ``model`` given by name (not for the reference).
            Weights are loaded as float32 unless this says another dtype.
    """

    _VALID_DICT_FIELDS = [*Seq2SeqTrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Autocast to bfloat16; by default where the GPU has it."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False."})

    objective: str = field(default="contrastive", metadata={"help": "'contrastive', 'introspective' or 'mle'."})
    loss_type: str = field(default="contrastive", metadata={"help": "'contrastive', 'dpo', 'infonce' or 'nca'."})
    num_negatives: int = field(default=5, metadata={"help": "Negatives for each positive (K)."})
    noise_ratio: float = field(default=1.0, metadata={"help": "nu: a log-ratio above ln(nu) passes as right."})
    beta: float = field(default=1.0, metadata={"help": "Scale of the log-ratio."})
    loss_terms: str = field(default="both", metadata={"help": "'both', 'positives' or 'negatives'."})
    mle_weight: float = field(default=0.0, metadata={"help": "Weight of the positives' likelihood beside the loss."})
    negatives: str = field(default="shuffled", metadata={"help": "'shuffled', 'nearest' or 'mixed'."})
    hard_negative_share: float = field(default=0.5, metadata={"help": "Share of near captions, with 'mixed'."})
    hard_negative_schedule: str = field(default="constant", metadata={"help": "'constant' or 'linear'."})
    hard_negative_source: str = field(default="images", metadata={"help": "'images' or 'captions' that are alike."})
    hard_negative_encoder: str | None = field(
        default=None, metadata={"help": "Dual encoder (CLIP, SigLIP) that tells what is alike."}
    )
    hard_negative_pool: int = field(default=100, metadata={"help": "Nearest captions that are drawn from."})
    hard_negative_threshold: float = field(
        default=1.0, metadata={"help": "Highest CIDEr-D of a near caption with the image's own."}
    )
    hard_negative_index: str = field(default="exact", metadata={"help": "'exact' or 'faiss', for many images."})
    captions_per_image: int | str = field(default=1, metadata={"help": "Captions of an image in an epoch, or 'all'."})
    image_column: str | None = field(default=None, metadata={"help": "Column with images."})
    caption_columns: list[str] | None = field(default=None, metadata={"help": "Column or columns with captions."})
    image_id_column: str | None = field(default=None, metadata={"help": "Column that identifies the image."})
    on_bad_image: str = field(default="raise", metadata={"help": "'raise' or 'skip'."})
    reservoir_size: int = field(default=5000, metadata={"help": "Captions of a stream kept for negatives."})
    stream_sharding: str = field(default="auto", metadata={"help": "'auto', 'shards' or 'replicate'."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes for tokenizing."})
    max_caption_tokens: int | None = field(default=None, metadata={"help": "Longest caption in tokens."})
    prompt: str | None = field(default=None, metadata={"help": "What a chat model is asked before its caption."})
    reference_prompt: str | None = field(default=None, metadata={"help": "What a chat model as reference is asked."})
    packing: str = field(default="auto", metadata={"help": "'auto', 'packed' or 'repeated'."})
    max_logits_bytes: int = field(default=DEFAULT_MAX_LOGITS_BYTES, metadata={"help": "Bytes of logits held at once."})
    freeze_vision_encoder: bool = field(default=False, metadata={"help": "Freeze the vision encoder."})
    cache_vision_states: bool = field(default=False, metadata={"help": "Encode each image once, ahead, to disk."})
    precompute_reference: bool = field(default=False, metadata={"help": "Score with the reference ahead, to disk."})
    precomputed_dir: str | None = field(default=None, metadata={"help": "Folder for what is computed ahead."})
    reference_refresh: int | str | None = field(
        default=None, metadata={"help": "Replace the reference every so many steps, or every 'epoch'."}
    )
    reference_mixup: float = field(default=1.0, metadata={"help": "How far a replacement goes; 1 is a copy."})
    eval_captions: int = field(default=0, metadata={"help": "Images that are captioned at each evaluation."})
    eval_retrieval_pool: int | None = field(default=None, metadata={"help": "How many of them for self-retrieval."})
    eval_score: str | None = field(default=None, metadata={"help": "Such as 'cider_d + 2 * recall_at_1'."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For from_pretrained of the model; JSON on a command line."}
    )

    def __post_init__(self) -> None:
        """Check the arguments, once.

        Raises:
            ValueError: For an argument that is out of its range or cannot work here.
        """
        if isinstance(self.caption_columns, str):
            self.caption_columns = [self.caption_columns]
        self.captions_per_image = _number_in(self.captions_per_image)
        self.reference_refresh = _number_in(self.reference_refresh)
        check_config(self)
        if self.greater_is_better is None:
            self.greater_is_better = greater_is_better(self.metric_for_best_model or "")
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and gpu_computes_in_bfloat16()
        if self.ddp_find_unused_parameters is None and self.objective != "mle":
            # Trainer's default is a walk through the graph in every step. Weights without a gradient are frozen before
            # training, and no layer is dropped. Maximum likelihood keeps the dropout of whole layers, and the walk.
            self.ddp_find_unused_parameters = False
        super().__post_init__()  # type: ignore[no-untyped-call]
        accelerator_config = self.accelerator_config
        assert isinstance(accelerator_config, AcceleratorConfig)  # made of whatever was given
        if accelerator_config.dispatch_batches or accelerator_config.split_batches:
            raise ValueError(
                "dispatch_batches and split_batches of accelerator_config cut every tensor of a batch along its first "
                "dimension, and captions are ragged; leave both off: every process reads its own rows"
            )
        accelerator_config.dispatch_batches = False  # Accelerate's default for streams is True

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the token: ``Trainer`` pickles its arguments beside the model, and uploads the file."""
        return {**self.__dict__, "hub_token": None}

    def __copy__(self) -> ContrastiveCaptionConfig:
        """With the token, unlike what is pickled."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> ContrastiveCaptionConfig:
        """With the token, unlike what is pickled."""
        made = copy.copy(self)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    @property
    def score_weights(self) -> dict[str, float]:
        """The weights in :attr:`eval_score`, by measure."""
        return {} if self.eval_score is None else parse_score(self.eval_score)

    @property
    def draw_seed(self) -> int:
        """The seed of order, captions, negatives and augmentation: ``data_seed``, or ``seed`` if there is none."""
        return self.seed if self.data_seed is None else self.data_seed


def _number_in(value: T) -> T | int:
    """A number that a command line gave as a word."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value
