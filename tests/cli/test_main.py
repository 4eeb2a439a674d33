"""The command line: fast help, exit codes, one message for an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets", "numpy", "pandas", "pyarrow", "PIL", "accelerate", "peft", "tokenizers"}


def run(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "hf_contrastive_caption.cli.main"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}
    return subprocess.run([sys.executable, *program, *words], capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["demo", "--help"], ["caption", "--help"], ["convert", "--help"], ["env", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(words):
    code = (
        "import json, sys\n"
        "from hf_contrastive_caption.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code in (0, None)\n"
        "print('MODULES' + json.dumps(sorted(sys.modules)))\n"
    )
    done = run(*words, code=code)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.split("MODULES")[1])
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()
    assert len(modules) < 500  # with torch alone there are more than 1,500


def test_help_names_the_commands_and_their_options():
    done = run("--help")
    assert done.returncode == 0
    assert {"demo", "train", "caption", "convert", "env", "--debug", "--version"} <= set(done.stdout.split())
    assert {"--install-completion", "--show-completion"} <= set(done.stdout.split())
    assert len(done.stdout.splitlines()) < 30
    assert "..." not in done.stdout.replace("[ARGS]...", "")  # no command's line is cut
    done = run("demo", "--help")
    assert done.returncode == 0
    options = ("seed", "output-dir", "train-images", "reference-steps", "steps", "num-negatives", "quick")
    assert {f"--{option}" for option in options} <= set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unknown"], "No such command"),
        (["demo", "--unknown"], "No such option"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo", "--num-negatives", "many"], "--num-negatives"),
    ],
)
def test_wrong_use_ends_with_2(words, message):
    done = run(*words)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("place", [None, "before", "after"])
def test_a_failure_ends_with_1_and_one_message(monkeypatch, capsys, place):
    from hf_contrastive_caption.cli import environment
    from hf_contrastive_caption.cli.main import main

    def fail() -> dict[str, str]:
        raise ValueError("this cannot work; do that instead")

    monkeypatch.setattr(environment, "environment", fail)
    words = {None: ["env"], "before": ["--debug", "env"], "after": ["env", "--debug"]}[place]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "this cannot work; do that instead" in shown
    assert ("Traceback" in shown) == (place is not None)
    if place is None:
        assert shown.splitlines()[0] == "error: this cannot work; do that instead"


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    from hf_contrastive_caption.cli import environment
    from hf_contrastive_caption.cli.main import main

    def interrupted() -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "environment", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["env"])
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line_and_said_once(monkeypatch, capsys):
    import warnings

    from hf_contrastive_caption.cli import environment
    from hf_contrastive_caption.cli.main import main

    def warn() -> dict[str, str]:
        for text in ("few images", "few images", "no Java"):
            warnings.warn(text, stacklevel=1)
        warnings.warn("few images", stacklevel=2)  # from another line
        warnings.warn("a name that will go", FutureWarning, stacklevel=2)
        return {}

    before = warnings.showwarning
    monkeypatch.setattr(environment, "environment", warn)
    with pytest.raises(SystemExit) as end:
        main(["env"])
    assert end.value.code == 0
    assert capsys.readouterr().err.splitlines() == ["warning: few images", "warning: no Java"]
    assert warnings.showwarning is before


@pytest.mark.parametrize(
    ("command", "titles"),
    [
        ("caption", ["Arguments", "Options", "Output", "Decoding"]),
        ("evaluate", ["Arguments", "Options", "Data", "Captions", "Measures"]),
        ("compare", ["Arguments", "Options", "Data", "Captions", "Measures"]),
    ],
)
def test_options_stand_in_groups_with_defaults(command, titles):
    lines = run(command, "--help").stdout.splitlines()
    assert [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")] == titles
    for line in lines:
        if line.startswith("  --"):  # in one column, beside its words
            assert re.fullmatch(r"  --\S+( \S+)?  +\S.*", line), line
    text = " ".join(" ".join(lines).split())
    assert "[default: (3" in text and "[default: 0; x>=0]" in text and "[required]" in text


def test_env_names_the_versions():
    import torch
    import transformers

    done = run("env")
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert shown["torch"] == torch.__version__ and shown["transformers"] == transformers.__version__
    assert shown["python"] == ".".join(map(str, sys.version_info[:3]))
    assert shown["devices"].startswith("cpu")


def test_version_is_that_of_the_package():
    import hf_contrastive_caption

    assert run("--version").stdout.strip() == hf_contrastive_caption.__version__


def test_settings_of_the_demo_reach_it(monkeypatch, tmp_path):
    from hf_contrastive_caption.cli.main import main
    from hf_contrastive_caption.demo import run as demo_run
    from hf_contrastive_caption.demo.settings import QUICK, DemoSettings

    seen: list[DemoSettings] = []
    monkeypatch.setattr(demo_run, "run_demo", seen.append)
    for words in ([], ["--quick"], ["--quick", "--steps", "7", "--seed", "3", "--output-dir", str(tmp_path)]):
        with pytest.raises(SystemExit) as end:
            main(["demo", *words])
        assert end.value.code == 0
    assert seen[0] == DemoSettings()
    assert seen[1] == DemoSettings(**QUICK)
    assert seen[2] == DemoSettings(**{**QUICK, "steps": 7}, seed=3, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("typed", "expected", "others"),
    [
        ("", {"train", "caption", "convert", "evaluate", "demo", "launch", "env"}, set()),
        ("ca", {"caption"}, {"convert"}),
        ("train --num-n", {"--num-negatives"}, {"--model"}),
        ("train --per-device", {"--per-device-train-batch-size", "--per-device-eval-batch-size"}, {"--seed"}),
        ("caption a.jpg --mod", {"--model"}, {"--json"}),
    ],
)
def test_shells_are_told_what_fits(typed, expected, others):
    code = (
        "import sys\nfrom hf_contrastive_caption.cli.main import main\n"
        "try:\n    main([])\nfinally:\n"
        "    print('HEAVY', {name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers'})\n"
    )
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "_CONTRASTIVE_CAPTION_COMPLETE": "complete_bash", "COMP_WORDS": f"contrastive-caption {typed}",
        "COMP_CWORD": str(len(typed.split()) or 1),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    words = set(done.stdout.split())
    assert expected <= words, done.stderr
    assert not others & words
    assert "HEAVY set()" in done.stdout
