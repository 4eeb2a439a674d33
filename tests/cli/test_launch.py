"""``contrastive-caption launch``: what it starts, what it passes on, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_contrastive_caption.cli import launch as command
from hf_contrastive_caption.cli.launch import exit_code, launch_command, own_words
from hf_contrastive_caption.launch import accelerate_config

SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import PartialState

state = PartialState(cpu=True)
Path(sys.argv[1], f"{state.process_index}.json").write_text(json.dumps([state.num_processes, sys.argv[2:]]))
state.wait_for_everyone()
state.destroy_process_group()
sys.exit(int("--fail" in sys.argv))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}
    program = [sys.executable, "-m", "hf_contrastive_caption.cli.main"]
    return subprocess.run([*program, *words], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_two_real_processes_get_the_arguments_and_end_with_their_code(tmp_path: Path, fails: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    passed_on = ["--debug", "--num-processes", "7", "--", "-x", *(["--fail"] if fails else [])]
    done = run("launch", "--accelerate-config", "ddp", "--num-processes=2", str(script), str(tmp_path), *passed_on)
    assert done.returncode == int(fails), done.stderr[-2000:]
    for process in range(2):
        assert json.loads((tmp_path / f"{process}.json").read_text()) == [2, passed_on]


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["launch", "a.py", "--debug"], 2),
        (["--debug", "launch", "--debug", "a.py", "launch"], 4),
        (["launch", "--accelerate-config", "ddp", "--num-processes", "2", "a.py", "b"], 6),
        (["launch", "--num-processes=2", "a.py", "b", "--debug"], 3),
        (["launch", "--num-processes"], 2),
        (["env", "--debug", "launch", "x"], 4),
        ([], 0),
    ],
)
def test_words_behind_the_script_are_the_scripts(words: list[str], own: int) -> None:
    assert own_words(words) == own


def test_the_command_runs_accelerate_in_this_python(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    file = str(accelerate_config("zero3"))
    assert launch_command("zero3", 4, script, ["--lr", "1"]) == [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "4",
        str(script), "--lr", "1",
    ]  # fmt: skip
    own = tmp_path / "own.yaml"
    own.touch()
    assert "--num_processes" not in launch_command(str(own), None, script, [])  # the file may say it


def test_one_process_per_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    script = tmp_path / "train.py"
    script.touch()
    for gpus in (3, 0):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        if gpus:
            assert launch_command("ddp", None, script, [])[5:7] == ["--num_processes", "3"]
        else:
            with pytest.raises(ValueError, match="say --num-processes"):
                launch_command("ddp", None, script, [])


def test_wrong_use_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no script"):
        launch_command("ddp", 2, tmp_path / "none.py", [])
    with pytest.raises(ValueError, match="there is no Accelerate config 'fsdp3'"):
        launch_command("fsdp3", 2, tmp_path / "none.py", [])
    script = tmp_path / "train.py"
    script.touch()
    monkeypatch.setattr(command, "version", lambda package: "1.5.2")
    with pytest.raises(ValueError, match="1.5.2 has no FSDP2"):
        launch_command("fsdp2", 2, script, [])
    monkeypatch.setattr(command, "version", lambda package: "1.10.0")
    assert launch_command("fsdp2", 2, script, [])[4] == str(accelerate_config("fsdp2"))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\n"
        "from hf_contrastive_caption.cli.main import main\n"
        "try:\n    main(['launch', '--help'])\n"
        "except SystemExit as end:\n    assert end.code in (0, None)\n"
        "print('MODULES' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    shown, modules = done.stdout.split("MODULES")
    assert {"--accelerate-config", "--num-processes"} <= set(shown.split())
    assert {"torch", "transformers", "accelerate", "numpy"} & set(json.loads(modules)) == set()


def test_a_signal_becomes_a_code() -> None:
    assert [exit_code(code) for code in (0, 3, -9)] == [0, 3, 137]
