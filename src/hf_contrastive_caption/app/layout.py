"""The page in Gradio: what stands where, and what happens when something is dropped, pressed or typed."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, NamedTuple, ParamSpec, TypeVar

import gradio as gr
from torch import nn

from hf_contrastive_caption.app.examples import ExampleImages
from hf_contrastive_caption.app.limits import AppLimits, RefusedError, check_file, open_files
from hf_contrastive_caption.app.ranking import JUDGES
from hf_contrastive_caption.app.rendering import render_answer, render_header
from hf_contrastive_caption.app.work import Answer, Captioners, Decoding
from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.evaluation.evaluator import as_captioner, prompt_of
from hf_contrastive_caption.generation import MAX_NEW_TOKENS, NUM_BEAMS
from hf_contrastive_caption.report.comparison import names_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_BEAMS, _SAMPLING = "beam search", "sampling"
_EMPTY = '<div class="cc-app"><p class="cc-empty">Both captions of each image come here, word by word.</p></div>'
_KEPT_SECONDS = 12 * 3600
"""How long images and captions are kept for somebody who may still look at them."""
_MODEL = "captioners"
"""Name of the queue of all that asks the captioners, of which one runs at a time."""


class Shown(NamedTuple):
    """What a visitor looks at.

    Attributes:
        paths: The images.
        answer: What is said of them.
    """

    paths: tuple[str, ...]
    answer: Answer


def build_app(
    reference: Captioner | nn.Module | str | PathLike[str],
    target: Captioner | nn.Module | str | PathLike[str],
    *,
    processing_class: Any = None,
    reference_processing_class: Any = None,
    prompt: str | None = None,
    reference_prompt: str | None = None,
    names: tuple[str, str] | None = None,
    limits: AppLimits | None = None,
    examples: Sequence[ExampleImages] = (),
) -> gr.Blocks:
    """The page as Gradio blocks, to be put into an app of one's own; :func:`serve_app` serves it as it should be.

    Args:
        reference: A captioner, a model, or the name or folder of one.
        target: The other.
        processing_class: Tokenizer and image processor of a target given as a model.
        reference_processing_class: The same of the reference; the target's if not given.
        prompt: What a target that is a chat model is asked; the prompt that was saved with it if not given.
        reference_prompt: The same of the reference; else what was saved with it, else what the target is asked.
        names: What the page calls reference and target.
        limits: What one visitor may ask.
        examples: Images that a visitor can try.

    Raises:
        ValueError: If there is no such folder, or a prompt does not fit.
        TypeError: If one of the two is no captioner.
    """
    if reference_processing_class is None and not isinstance(reference, (str, PathLike)):
        reference_processing_class = processing_class
    after = as_captioner(target, processing_class, prompt)
    before = as_captioner(reference, reference_processing_class, reference_prompt, otherwise=prompt_of(after))
    called = names_of(reference, target) if names is None else names
    return _Page(Captioners(before, after), called, AppLimits() if limits is None else limits).blocks(examples)


class _Page:
    """The page of two captioners: its parts, and what they do."""

    def __init__(self, captioners: Captioners, names: tuple[str, str], limits: AppLimits) -> None:
        self.captioners = captioners
        self.names = names
        self.limits = limits

    def blocks(self, examples: Sequence[ExampleImages]) -> gr.Blocks:
        """All of it."""
        title = f"{self.names[1]} compared with {self.names[0]}"
        page = gr.Blocks(title=title, analytics_enabled=False, fill_width=True, delete_cache=(600, _KEPT_SECONDS))
        with page:
            _html(render_header(self.names))
            shown = gr.State(None, time_to_live=_KEPT_SECONDS)
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    gallery, write, buttons = self._given(examples)
                    decoding = self._decoding()
                with gr.Column(scale=5, min_width=320):
                    captions = _html(_EMPTY, "captions")
                    own = gr.Textbox(
                        label="Your own caption",
                        placeholder="What would they think of your sentence? Enter scores it.",
                        max_length=self.limits.max_characters,
                        max_lines=3,
                        elem_id="own",
                    )
                    with gr.Column(visible=False) as several:
                        _html('<h2 class="cc-app cc-heading">Which image does each caption find?</h2>')
                        choices = [(said, name) for name, said in JUDGES.items()]
                        judge = gr.Radio(choices, value="writer", label="Who ranks the images", elem_id="judge")
                        ranking = _html("", "ranking")
            asked: dict[str, Any] = {"concurrency_id": _MODEL, "concurrency_limit": 1, "api_visibility": "private"}
            quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
            given, answered = [gallery, own, judge, *decoding], [captions, several, ranking, shown]
            # Through a queue, without which Gradio has no way to show a warning.
            gallery.upload(_told(self.kept), gallery, gallery, concurrency_id="uploads", api_visibility="private")
            write.click(_told(self.written), given, answered, show_progress_on=captions, **asked)
            for button, example in zip(buttons, examples, strict=True):
                button.click(_always(list(example.paths)), None, gallery, **quick).then(
                    _told(self.written), given, answered, show_progress_on=captions, **asked
                )
            own.submit(_told(self.scored), [*given[:3], shown], answered, show_progress_on=own, **asked)
            judge.change(_told(self.ranked), [judge, shown], [captions, ranking], **quick)
        page.queue(max_size=self.limits.max_queue, api_open=False)
        return page

    def _given(self, examples: Sequence[ExampleImages]) -> tuple[gr.Gallery, gr.Button, list[gr.Button]]:
        limits = self.limits
        gallery = gr.Gallery(
            label="Images", type="filepath", interactive=True, columns=2, height=320, object_fit="contain",
            file_types=["image"], sources=["upload", "clipboard"], buttons=[], elem_id="images",
        )  # fmt: skip
        write = gr.Button("Write captions", variant="primary", elem_id="write")
        _html(
            f'<p class="cc-app cc-note">At most {limits.max_images} images, {limits.max_upload_mb:g} MB and '
            f"{limits.max_megapixels:g} megapixels each. They stay on the machine that runs this page.</p>"
        )
        with gr.Row(elem_classes="cc-examples"):
            buttons = [gr.Button(one.name, size="sm", icon=one.icon, min_width=80) for one in examples]
        return gallery, write, buttons

    def _decoding(self) -> list[Any]:
        longest = min(
            captioner.processor.max_caption_tokens or MAX_NEW_TOKENS
            for captioner in (self.captioners.reference, self.captioners.target)
        )
        longest = min(longest, MAX_NEW_TOKENS)
        most = self.limits.max_beams
        with gr.Accordion("How captions are written", open=False):
            way = gr.Radio([_BEAMS, _SAMPLING], value=_BEAMS, show_label=False, elem_id="way")
            beams = gr.Slider(1, most, min(NUM_BEAMS, most), step=1, label="Beams", visible=most > 1)
            temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="Temperature", visible=False)
            top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Top p", visible=False)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, visible=False)
            length = gr.Slider(1, longest, longest, step=1, label="Longest caption in tokens", visible=longest > 1)
        way.change(
            lambda chosen: [gr.update(visible=(chosen == _SAMPLING) == sampling) for sampling in (0, 1, 1, 1)],
            way, [beams, temperature, top_p, seed], queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        return [way, beams, length, temperature, top_p, seed]

    def kept(self, items: Any) -> list[str]:
        """Of the images in the gallery those that are taken; what is wrong with each other one is said."""
        found: list[str] = []
        for path in _paths(items):
            try:
                check_file(path, self.limits)
                found.append(path)
            except RefusedError as error:
                _warn(error)
        try:
            self.limits.check_number(len(found))
        except RefusedError as error:
            _warn(error)
        return found[: self.limits.max_images]

    def written(self, items: Any, own: str, judge: str, *decoding: Any) -> tuple[str, Any, str, Shown]:
        """Both captions of each image."""
        paths = _paths(items)
        if not paths:
            raise RefusedError("There is no image yet: drop one, or take an example.")
        self._check_own(own)
        images = open_files(paths, self.limits)
        return self._show(Shown(paths, self.captioners.answer(images, _decoding(*decoding), own)), judge)

    def scored(self, items: Any, own: str, judge: str, shown: Shown | None) -> tuple[str, Any, str, Shown]:
        """The caption that was typed, beside the captions of the images that are shown."""
        if shown is None or shown.paths != _paths(items):
            raise RefusedError("Press Write captions first: your caption is scored beside theirs.")
        self._check_own(own)
        images = open_files(shown.paths, self.limits)
        return self._show(shown._replace(answer=self.captioners.with_own(shown.answer, images, own)), judge)

    def ranked(self, judge: str, shown: Shown | None) -> tuple[str, str]:
        """The same captions, ranked by somebody else."""
        return (_EMPTY, "") if shown is None else render_answer(shown.answer, judge, self.names)

    def _show(self, shown: Shown, judge: str) -> tuple[str, Any, str, Shown]:
        captions, ranking = render_answer(shown.answer, judge, self.names)
        return captions, gr.update(visible=bool(ranking)), ranking, shown

    def _check_own(self, own: str) -> None:
        if len(own) > self.limits.max_characters:
            raise RefusedError(
                f"Your caption has {len(own)} letters; at most {self.limits.max_characters} are taken. Shorten it."
            )


def theme() -> gr.themes.Base:
    """The look of Gradio's own parts: quiet, and in fonts that the reader's machine has."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def _warn(error: RefusedError) -> None:
    gr.Warning(html.escape(str(error)), duration=None)


def _told(work: Callable[P, R]) -> Callable[P, R]:
    """The same, with what is wrong said to the visitor; the text may hold names of files, and is escaped."""

    def told(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return work(*arguments, **named)
        except (ValueError, TypeError) as error:
            if not isinstance(error, RefusedError):
                logger.warning("a visitor was told: %s", error)
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return told


def _html(content: str, elem_id: str | None = None) -> gr.HTML:
    """HTML of the page's own look, without a script of Gradio's."""
    return gr.HTML(content, elem_id=elem_id, apply_default_css=False, js_on_load=None)


def _always(value: R) -> Callable[[], R]:
    return lambda: value


def _paths(items: Any) -> tuple[str, ...]:
    """The files of a gallery, which gives them with captions."""
    return tuple(path for path, _ in items or ())


def _decoding(way: str, beams: float, length: float, temperature: float, top_p: float, seed: float) -> Decoding:
    return Decoding(
        num_beams=int(beams),
        max_new_tokens=int(length),
        sample=way == _SAMPLING,
        temperature=float(temperature),
        top_p=float(top_p),
        seed=int(seed or 0),
    )
