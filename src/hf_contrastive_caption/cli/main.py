"""The entry of ``contrastive-caption``.

Nothing of torch, transformers or datasets is imported before a command needs it: ``--help`` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_contrastive_caption.cli.app_command import show_app
from hf_contrastive_caption.cli.caption_command import caption
from hf_contrastive_caption.cli.convert_command import convert
from hf_contrastive_caption.cli.errors import WRONG_USE, WrongUseError
from hf_contrastive_caption.cli.interpolate_command import interpolate
from hf_contrastive_caption.cli.launch import own_words
from hf_contrastive_caption.cli.measure_commands import compare, evaluate
from hf_contrastive_caption.cli.train_command import TrainCommand, train
from hf_contrastive_caption.cli.words import GroupedCommand
from hf_contrastive_caption.demo.settings import QUICK, DemoSettings

_DEFAULT = DemoSettings()

app = typer.Typer(
    name="contrastive-caption",
    help="Train image captioners that tell images apart.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with its exit code.

    Args:
        arguments: The words after the program's name; those of the process if not given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    own = own_words(arguments)
    debug = "--debug" in arguments[:own]  # wherever it stands, before or after the command
    words = [word for word in arguments[:own] if word != "--debug"]
    try:
        with _short_warnings():
            app([*words, *arguments[own:]], prog_name="contrastive-caption")
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {str(error).strip() or type(error).__name__}", file=sys.stderr)
            if not isinstance(error, WrongUseError):
                print("(--debug shows where this comes from)", file=sys.stderr)
        sys.exit(WRONG_USE if isinstance(error, WrongUseError) else 1)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line each, without the line of source that they come from, and none of them twice.

    Those of names that will go are for who writes programs, and are not shown.
    """
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *where_from: Any, **more: Any) -> None:
        if str(message) not in told and not issubclass(category, (DeprecationWarning, FutureWarning)):
            told.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        from hf_contrastive_caption import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train image captioners that tell images apart."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes, weights and training.")] = _DEFAULT.seed,
    output_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for the tuned model and the numbers.")
    ] = _DEFAULT.output_dir,
    train_images: Annotated[
        int | None, typer.Option(min=2, help="Scenes to train on.", show_default=str(_DEFAULT.train_images))
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(min=2, help="Scenes to compare on.", show_default=str(_DEFAULT.test_images))
    ] = None,
    reference_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that make the reference.", show_default=str(_DEFAULT.reference_steps)),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of tuning, and of control.", show_default=str(_DEFAULT.steps))
    ] = None,
    num_negatives: Annotated[
        int, typer.Option(min=1, help="Captions of other images that each caption is compared with.")
    ] = _DEFAULT.num_negatives,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in a step.", show_default=str(_DEFAULT.batch_size))
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Take seconds: shows that everything works, and no effect.")
    ] = False,
) -> None:
    """Make a small captioner more distinctive.

    Trains one on drawn scenes with maximum likelihood, tunes it contrastively, and compares it with a control that
    trained as long without the contrastive loss. Takes less than six minutes on two processor cores.
    """
    given = {
        "train_images": train_images,
        "test_images": test_images,
        "reference_steps": reference_steps,
        "steps": steps,
        "batch_size": batch_size,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    sizes = {**(QUICK if quick else {}), **chosen}
    settings = DemoSettings(seed=seed, output_dir=output_dir, num_negatives=num_negatives, **sizes)

    from hf_contrastive_caption.demo.run import run_demo

    run_demo(settings)


app.command(cls=TrainCommand, add_help_option=False, context_settings=TrainCommand.SETTINGS)(train)
_GROUPED: dict[str, Callable[..., None]] = {
    "caption": caption,
    "evaluate": evaluate,
    "compare": compare,
    "app": show_app,
    "convert": convert,
    "interpolate": interpolate,
}
for _name, _command in _GROUPED.items():
    app.command(_name, cls=GroupedCommand)(_command)


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
def launch(
    script: Annotated[Path, typer.Argument(help="Training script, a Python file.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS]...", help="Given to the script as they are.", show_default=False),
    ] = None,
    accelerate_config: Annotated[
        str, typer.Option(help="ddp, fsdp2, zero2, zero3, or a config file of Accelerate.")
    ] = "ddp",
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes.", show_default="one per GPU")
    ] = None,
) -> None:
    """Run a training script in several processes.

    By accelerate launch, whose exit code is 1 if the script fails.
    """
    from hf_contrastive_caption.cli import launch as command

    raise typer.Exit(command.launch(accelerate_config, num_processes, script, arguments or []))


@app.command()
def env() -> None:
    """Print the versions that a bug report should name."""
    from hf_contrastive_caption.cli.environment import environment

    for name, value in environment().items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
