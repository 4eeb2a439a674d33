"""The training arguments."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from typing import Any, get_args

from transformers import Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_contrastive_caption.captioners.vocabulary import DEFAULT_MAX_LOGITS_BYTES
from hf_contrastive_caption.evaluation.score import (
    LOWER_IS_BETTER,
    MEASURES,
    needs_retrieval,
    parse_score,
    recall_number,
)
from hf_contrastive_caption.losses import LossTerms, LossType
from hf_contrastive_caption.precision import gpu_computes_in_bfloat16

_NO_LOGITS = "logits are never kept here; `evaluate()` reports the loss, the log-ratios and the ranking by itself"
_NOISE = "it adds noise to the target's scores, and the log-ratio to the reference must be free of it"
_GENERATION = "with eval_captions=N every evaluation generates captions for N images and measures them"
_TOKENS = "a batch has no `input_ids` of its own; captions are ragged"
_ORDER = "the order of an epoch is a keyed permutation, so that a resume and any number of processes see the same rows"

REFUSED_OPTIONS: dict[str, str] = {
    "auto_find_batch_size": "the batch size decides how an epoch is padded, and the paper's balance of positives and "
    "negatives rests on it; lower per_device_train_batch_size and raise gradient_accumulation_steps instead",
    "average_tokens_across_devices": "the loss is always normalised over all processes",
    "batch_eval_metrics": _NO_LOGITS,
    "bf16_full_eval": "it would cast the target and not the reference; bf16=True runs both under autocast",
    "dataloader_drop_last": "every image counts once in an epoch, and the loss of a last, smaller step is divided by "
    "what is in it",
    "eval_accumulation_steps": "nothing is accumulated: " + _NO_LOGITS,
    "eval_do_concat_batches": _NO_LOGITS,
    "eval_use_gather_object": _NO_LOGITS,
    "fp16_full_eval": "it would cast the target and not the reference; fp16=True runs both under autocast",
    "include_for_metrics": _NO_LOGITS,
    "include_num_input_tokens_seen": _TOKENS,
    "label_names": "captions are not labels: they come as a CaptionBatch",
    "label_smoothing_factor": "a smoothed loss is not a log-probability, so it has no log-ratio",
    "length_column_name": "what is drawn anew in every epoch has no column of lengths; they are looked up where they "
    "are needed",
    "liger_kernel_config": "see use_liger_kernel",
    "neftune_noise_alpha": _NOISE,
    "parallelism_config": "tensor, context and sequence parallelism split captions over processes, and the scores are "
    "summed on one; data parallelism (DDP) works",
    "predict_with_generate": _GENERATION,
    "prediction_loss_only": "evaluation never returns more than metrics",
    "remove_unused_columns": "the image and caption columns are found by the data pipeline, which drops the others",
    "sortish_sampler": _ORDER,
    "torch_compile": "hooks that are set during a call are not seen by compiled code, and scoring relies on them",
    "torch_compile_backend": "see torch_compile",
    "torch_compile_mode": "see torch_compile",
    "use_liger_kernel": "its fused loss replaces the model's forward; here the projection is fused with the "
    "log-probabilities already",
}
"""Inherited options that cannot work here, and why. Each is refused when it is set to anything but its default."""

_BETTER_WHEN_LOWER = ("negative_log_ratio", "negative_log_prob", "distractor_log_prob", "skipped_images", "runtime")
"""Metrics of an evaluation, of captions excepted, that are better when they are lower; also of one of several sets."""

_OFF: tuple[Any, ...] = (None, False, 0, "no", [])
"""What means "do not" where not doing it is the default; a command line parser may give another of them."""


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
        self._check_refused()
        self._check_choices()
        self._check_numbers()
        self._check_objective()
        self._check_negatives()
        self._check_reference()
        self._check_evaluation()
        if isinstance(self.caption_columns, str):
            self.caption_columns = [self.caption_columns]
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

    @property
    def score_weights(self) -> dict[str, float]:
        """The weights in :attr:`eval_score`, by measure."""
        return {} if self.eval_score is None else parse_score(self.eval_score)

    @property
    def draw_seed(self) -> int:
        """The seed of order, captions, negatives and augmentation: ``data_seed``, or ``seed`` if there is none."""
        return self.seed if self.data_seed is None else self.data_seed

    def _check_refused(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        defaults |= {f.name: f.default_factory() for f in fields(self) if f.default_factory is not MISSING}
        for name, reason in REFUSED_OPTIONS.items():
            value = getattr(self, name)
            off = any(value is nothing or value == nothing for nothing in _OFF)
            if name in defaults and value != defaults[name] and not (off and defaults[name] in _OFF):
                raise ValueError(f"{name}={getattr(self, name)!r} cannot be used for contrastive captioning: {reason}")

    def _check_choices(self) -> None:
        choices = {
            "objective": ("contrastive", "introspective", "mle"),
            "loss_type": get_args(LossType),
            "loss_terms": get_args(LossTerms),
            "negatives": ("shuffled", "nearest", "mixed"),
            "hard_negative_schedule": ("constant", "linear"),
            "hard_negative_source": ("images", "captions"),
            "hard_negative_index": ("exact", "faiss"),
            "on_bad_image": ("raise", "skip"),
            "packing": ("auto", "packed", "repeated"),
            "stream_sharding": ("auto", "shards", "replicate"),
            "train_sampling_strategy": ("random", "sequential", "group_by_length"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}")

    def _check_numbers(self) -> None:
        per_image = self.captions_per_image
        if isinstance(per_image, str) and per_image.isdecimal():
            self.captions_per_image = int(per_image)
        elif isinstance(per_image, str) and per_image != "all":
            raise ValueError(f"captions_per_image is {per_image!r}, but must be a whole number or 'all'")
        smallest = {
            "eval_captions": 0,
            "eval_retrieval_pool": 0,
            "num_negatives": 1,
            "hard_negative_pool": 1,
            "captions_per_image": 1,
            "reservoir_size": 2,
            "max_caption_tokens": 2,
            "max_logits_bytes": 1,
        }
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is None or (name == "captions_per_image" and value == "all"):
                continue
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, but is {value!r}")
        of_negatives = ("hard_negative_share", "hard_negative_threshold")
        for name in ("noise_ratio", "beta", "mle_weight", *of_negatives, "reference_mixup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"{name} must be a number, but is {value!r}")
        for name in ("noise_ratio", "beta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be above 0 and finite, but is {getattr(self, name)}; the paper uses 1.0"
                )

    def _check_objective(self) -> None:
        """Settings of the loss that mean something for another objective or loss only."""
        if not 0 <= self.mle_weight < float("inf"):
            raise ValueError(f"mle_weight must be at least 0 and finite, but is {self.mle_weight}; 0 leaves it out")
        if self.objective == "mle" and self.mle_weight:
            raise ValueError(
                f"mle_weight={self.mle_weight} adds the likelihood of the positives to another loss, and "
                "objective='mle' is that likelihood already; leave it out"
            )
        if self.objective != "contrastive" and self.loss_type != "contrastive":
            raise ValueError(
                f"loss_type={self.loss_type!r} is a loss of log-ratios to a reference, which "
                f"objective={self.objective!r} has not; leave it out, or use objective='contrastive'"
            )
        # Maximum likelihood takes them without a use for them: a control is the run beside it with another objective.
        other = self.loss_type if self.objective == "contrastive" else self.objective
        for name, unset in {"noise_ratio": 1.0, "loss_terms": "both"}.items():
            if other not in ("contrastive", "mle") and getattr(self, name) != unset:
                option = "loss_type" if self.objective == "contrastive" else "objective"
                raise ValueError(
                    f"{name}={getattr(self, name)!r} belongs to loss_type='contrastive' and means nothing with "
                    f"{option}={other!r}; leave it out"
                )

    def _check_negatives(self) -> None:
        """Options of hard negatives, which have no meaning without them."""
        if not 0 < self.hard_negative_share <= 1:
            raise ValueError(f"hard_negative_share must be above 0 and at most 1, but is {self.hard_negative_share}")
        if not 0 <= self.hard_negative_threshold <= 10:
            raise ValueError(
                f"hard_negative_threshold is {self.hard_negative_threshold}, but CIDEr-D is between 0 and 10"
            )
        for option in fields(self):
            needed = ("mixed",) if option.name == "hard_negative_share" else ("nearest", "mixed")
            if not option.name.startswith("hard_negative_") or getattr(self, option.name) == option.default:
                continue
            if self.negatives not in needed:
                raise ValueError(
                    f"{option.name}={getattr(self, option.name)!r} has no meaning with negatives={self.negatives!r}; "
                    f"set negatives to {' or '.join(map(repr, needed))}, or leave it out"
                )
        words = self.hard_negative_source == "captions" and self.hard_negative_encoder is None
        if words and self.hard_negative_index == "faiss":
            raise ValueError(
                "hard_negative_index='faiss' is for vectors of encoders, and hard_negative_source='captions' compares "
                "words; leave the index out, or name a dual encoder as hard_negative_encoder"
            )
        if self.negatives != "shuffled" and self.objective != "contrastive":
            raise ValueError(
                f"objective={self.objective!r} has no negatives, so negatives={self.negatives!r} means nothing; leave "
                "it out, or use objective='contrastive'"
            )

    def _check_reference(self) -> None:
        """Ways to hold a reference that exclude each other."""
        refresh = self.reference_refresh
        if isinstance(refresh, str) and refresh.isdecimal():
            self.reference_refresh = refresh = int(refresh)
        if refresh is not None and refresh != "epoch" and (type(refresh) is not int or refresh < 1):
            raise ValueError(
                f"reference_refresh is {refresh!r}, but must be 'epoch', a number of steps of at least 1, or None"
            )
        if not 0 < self.reference_mixup <= 1:
            raise ValueError(f"reference_mixup must be above 0 and at most 1, but is {self.reference_mixup}")
        if refresh is None and self.reference_mixup != 1:
            raise ValueError(
                f"reference_mixup={self.reference_mixup} says how far a replacement of the reference goes, but there "
                "is none; set reference_refresh to 'epoch' or a number of steps"
            )
        if refresh is not None and self.precompute_reference:
            raise ValueError(
                "reference_refresh and precompute_reference exclude each other: a reference that follows the target "
                "has no scores before the training. Leave one of them out"
            )
        if self.cache_vision_states and not self.freeze_vision_encoder:
            raise ValueError(
                "cache_vision_states=True keeps the states of the vision encoder, which change as long as it trains; "
                "set freeze_vision_encoder=True as well"
            )
        ahead = self.precompute_reference or self.cache_vision_states or self.negatives != "shuffled"
        if self.precomputed_dir is not None and not ahead:
            raise ValueError(
                f"precomputed_dir={self.precomputed_dir!r} is where scores, image states and neighbours are kept, but "
                "neither precompute_reference nor cache_vision_states is set, and negatives are shuffled"
            )
        for name in ("precompute_reference", "reference_refresh"):
            if self.objective != "contrastive" and getattr(self, name):
                raise ValueError(
                    f"objective={self.objective!r} has no reference, so {name} has no meaning; leave it out"
                )

    def _check_evaluation(self) -> None:
        """Captions must be generated for what is measured of them."""
        if self.eval_retrieval_pool is not None and self.eval_retrieval_pool > self.eval_captions:
            raise ValueError(
                f"eval_retrieval_pool={self.eval_retrieval_pool} images, but only eval_captions={self.eval_captions} "
                "are captioned; raise eval_captions, or leave eval_retrieval_pool out to use all of them"
            )
        if not self.eval_captions and (self.generation_num_beams or self.generation_max_length):
            raise ValueError(
                "generation_num_beams and generation_max_length say how captions are generated at an evaluation, but "
                "eval_captions is 0; set eval_captions=500, say, or leave them out"
            )
        if self.eval_captions == 1:
            raise ValueError("eval_captions=1: one image is always found; caption at least 2, better 500")
        self._check_best_metric()
        for name in self.score_weights:
            self._check_measure("eval_score", name)

    def _check_best_metric(self) -> None:
        given = (self.metric_for_best_model or "").removeprefix("eval_")
        if re.search(r"[+*@]| - ", given):
            raise ValueError(
                f"metric_for_best_model is {self.metric_for_best_model!r}; give the sum as eval_score={given!r} and "
                "set metric_for_best_model='score' (recall is called recall_at_1)"
            )
        best = _measure_of(given)
        if best == "score":
            if self.eval_score is None:
                raise ValueError("metric_for_best_model='score' needs eval_score, such as 'cider_d + 2 * recall_at_1'")
        elif best is not None:
            self._check_measure("metric_for_best_model", best)
            if self.greater_is_better is None:
                self.greater_is_better = best not in LOWER_IS_BETTER
        elif given.endswith(_BETTER_WHEN_LOWER) and self.greater_is_better is None:
            self.greater_is_better = False  # Trainer's default for all but losses is True

    def _check_measure(self, option: str, name: str) -> None:
        if not self.eval_captions:
            raise ValueError(f"{option} takes {name}, which needs eval_captions, such as eval_captions=500")
        pool = self.eval_captions if self.eval_retrieval_pool is None else self.eval_retrieval_pool
        if needs_retrieval(name) and pool <= (recall_number(name) or 1):
            raise ValueError(
                f"{option} takes {name}, but eval_retrieval_pool={pool}: it must be above the number of images that "
                "count as found"
            )


def _measure_of(metric: str) -> str | None:
    """The measure of captions that a metric is, also of one of several data sets: ``birds_median_rank``."""
    found = re.search(rf"(?:^|_)({'|'.join(MEASURES)}|recall_at_[1-9]\d*|score)$", metric)
    return found[1] if found else None
