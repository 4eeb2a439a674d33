"""What is published, byte for byte, by the real client to a stand-in on loopback, and that it comes back the same."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig
from transformers import TrainerCallback

from hf_contrastive_caption import Captioner
from hf_contrastive_caption.hub import CardContent, CardExample
from hf_contrastive_caption.hub.publishing import HubRefusedError
from tests import tiny
from tests.families.chat import LLAVA, PROMPT
from tests.hub_server import TOKEN, Hub, point_client_to
from tests.training import trainer

SHORT: dict[str, Any] = {"max_new_tokens": 6, "num_beams": 2}
PUSH: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "me/model"}
OF_A_PAIR = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"}
TEXT = {"tokenizer.json", "tokenizer_config.json"}


def published(hub: Hub, name: str = "me/model") -> dict[str, bytes]:
    """The files of a repository without the Hub's own."""
    return {path: content for path, content in hub[name].files.items() if path != ".gitattributes"}


def run_code(
    card: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What the blocks of Python in a card print."""
    tiny.images(1)[0].save(folder / "photo.png")
    (folder / "photo.png").rename(folder / "photo.jpg")  # without the losses of a real one
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)
    capsys.readouterr()
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


class TestWholeModel:
    def test_what_is_published_is_what_is_saved(self, hub: Hub, tmp_path: Path) -> None:
        run = trainer(tmp_path / "run", options=PUSH)
        run.train()
        (tmp_path / "run" / "_unfinished-9").mkdir()
        (tmp_path / "run" / "_unfinished-9" / "model.safetensors").write_bytes(b"half")
        run.create_model_card(model_name="Bird captioner")
        commit = run.push_to_hub(commit_message="first")
        files = published(hub)
        assert hub["me/model"].summaries == ["first"] and commit.oid == hub["me/model"].commits[-1][0]
        assert set(files) == OF_A_PAIR | TEXT | {"README.md", "training_args.bin", "card/training_curves.png"}
        for path, content in files.items():
            assert content == (tmp_path / "run" / path).read_bytes()
        assert "# Bird captioner\n" in files["README.md"].decode()
        assert files["card/training_curves.png"].startswith(b"\x89PNG")
        assert not hub["me/model"].private

    def test_it_comes_back_the_same(self, hub: Hub, tmp_path: Path) -> None:
        run = trainer(tmp_path / "run", options=PUSH)
        run.train()
        run.push_to_hub()
        images = tiny.images(3)
        loaded = Captioner.from_pretrained("me/model")
        assert loaded.caption(images, **SHORT) == run.captioner.caption(images, **SHORT)
        ours, theirs = run.captioner.base_model.state_dict(), loaded.base_model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
        first = hub["me/model"].commits[-1][0]
        with torch.no_grad():
            run.captioner.base_model.decoder.lm_head.weight.zero_()
        run.push_to_hub()
        assert Captioner.from_pretrained("me/model", revision=first).caption(images, **SHORT) == loaded.caption(
            images, **SHORT
        )
        assert Captioner.from_pretrained("me/model").caption(images, **SHORT) != loaded.caption(images, **SHORT)

    def test_the_code_in_its_card_runs(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = trainer(tmp_path / "run", options=PUSH)
        run.push_to_hub()
        expected = run.captioner.caption(tiny.images(1)[0])
        card = hub["me/model"].files["README.md"].decode()
        assert run_code(card, tmp_path, monkeypatch, capsys) == [expected, expected]

    def test_a_tuned_model_of_the_hub_says_from_what(self, hub: Hub, tmp_path: Path) -> None:
        first = trainer(tmp_path / "first", options={**PUSH, "hub_model_id": "me/base"})
        first.push_to_hub()
        commit = hub["me/base"].commits[-1][0]
        second = trainer(tmp_path / "second", model="me/base", options=PUSH, processing_class=None)
        second.train()
        second.push_to_hub()
        card = ModelCard(published(hub)["README.md"].decode())
        assert card.data.base_model == "me/base" and card.data["base_model_relation"] == "finetune"
        assert f"| tuned model | me/base at revision {commit} |" in card.text
        assert second.reference is not None
        assert f"settings | {second.reference.digest()} |" in card.text


class TestPrivacy:
    def test_a_private_repository_is_asked_for(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = trainer(tmp_path / "run", options={**PUSH, "hub_private_repo": True})
        run.push_to_hub()
        assert hub["me/model"].private
        assert Captioner.from_pretrained("me/model", token=TOKEN).caption(tiny.images(1)[0], max_new_tokens=2)
        point_client_to(hub, monkeypatch, tmp_path / "elsewhere", token=None)
        with pytest.raises(OSError, match="me/model"):
            Captioner.from_pretrained("me/model")
        assert Captioner.from_pretrained("me/model", token=TOKEN).dtype == torch.float32

    def test_no_token_is_published(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        options = {**PUSH, "hub_token": TOKEN, "save_strategy": "steps", "save_steps": 1}
        run = trainer(tmp_path / "run", options={**options, "hub_strategy": "all_checkpoints"})
        run.train()
        run.push_to_hub()
        files = published(hub)
        assert "checkpoint-1/training_args.bin" in files
        assert [path for path, content in files.items() if TOKEN.encode() in content] == []
        assert run.args.hub_token == TOKEN
        assert pickle.loads(pickle.dumps(run.args)).hub_token is None

    def test_nothing_is_published_unless_asked_for(self, hub: Hub, tmp_path: Path) -> None:
        run = trainer(tmp_path / "run")
        run.train()
        run.save_model()
        assert hub.requests == [] and hub.repositories == {}


class TestAdapter:
    def test_the_adapter_alone_is_published_and_found_on_its_base(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trainer(tmp_path / "base", options={**PUSH, "hub_model_id": "me/base"}).push_to_hub()
        lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
        options = {**PUSH, "learning_rate": 0.1}
        run = trainer(tmp_path / "run", model="me/base", processing_class=None, peft_config=lora, options=options)
        run.train()
        run.push_to_hub()
        files = published(hub)
        own = {"adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}
        assert set(files) == own | TEXT | {"README.md", "training_args.bin", "card/training_curves.png"}
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
        card = ModelCard(files["README.md"].decode())
        assert card.data.library_name == "peft" and card.data.base_model == "me/base"
        assert card.data["base_model_relation"] == "adapter"
        image = tiny.images(1)[0]
        expected = run.captioner.caption(image)
        assert Captioner.from_pretrained("me/base").caption(image) != expected
        assert Captioner.from_pretrained("me/model").caption(image) == expected
        assert run_code(str(card), tmp_path, monkeypatch, capsys) == [expected, expected]


class TestChatModel:
    def test_the_whole_processor_is_published(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = {**PUSH, "prompt": PROMPT}
        run = trainer(tmp_path / "run", LLAVA.model(0.0), options=options, processing_class=LLAVA.processing())
        run.push_to_hub()
        files = published(hub)
        assert {"chat_template.jinja", "processor_config.json", "generation_config.json"} | TEXT <= set(files)
        card = ModelCard(files["README.md"].decode())
        assert card.data.pipeline_tag == "image-text-to-text"
        assert f"| prompt | {PROMPT} |" in card.text
        image = tiny.images(1)[0]
        expected = run.captioner.caption(image)
        assert Captioner.from_pretrained("me/model").caption(image) == expected
        assert run_code(card.text, tmp_path, monkeypatch, capsys) == [expected, expected]


class TestRefused:
    def test_a_refused_token_at_the_start(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
        with pytest.raises(HubRefusedError, match=r"'me/model' cannot be written to: .*401.*hf auth login"):
            trainer(tmp_path / "run", options=PUSH)

    def test_nothing_is_lost_when_the_token_is_refused_at_the_end(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = trainer(tmp_path / "run")
        run.train()
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_stranger")
        with pytest.raises(HubRefusedError, match=rf"401.*The model is saved in {re.escape(str(tmp_path / 'run'))}"):
            run.push_to_hub()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        run.push_to_hub()
        images = tiny.images(2)
        expected = run.captioner.caption(images, **SHORT)
        assert Captioner.from_pretrained(tmp_path / "run").caption(images, **SHORT) == expected
        assert Captioner.from_pretrained("me/run").caption(images, **SHORT) == expected

    def test_a_refused_upload_says_where_the_model_is(self, hub: Hub, tmp_path: Path) -> None:
        run = trainer(tmp_path / "run", options=PUSH)
        hub.refuse = lambda method, path: 403 if "/commit/" in path else 0
        with pytest.raises(HubRefusedError, match="the upload to me/model failed: .*403.* is saved in"):
            run.push_to_hub()
        assert (tmp_path / "run" / "model.safetensors").is_file()


class TestWhileTraining:
    @pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
    def test_checkpoints_go_up_whole_with_a_card(self, hub: Hub, tmp_path: Path, strategy: str) -> None:
        options = {**PUSH, "hub_strategy": strategy, "hub_always_push": True, "save_strategy": "steps"}
        run = trainer(tmp_path / "run", options={**options, "save_steps": 1, "max_steps": 3})
        run.train()
        commits = hub["me/model"].commits[1:]
        steps = [f"Training in progress, step {step}" for step in (1, 2, 3)]
        wanted = (
            steps if strategy == "every_save" else [line for step in steps for line in (step, f"{step}, checkpoint")]
        )
        assert hub["me/model"].summaries == wanted
        for _, summary, files in commits:
            step = re.findall(r"\d", summary)[0]
            saved = (tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors").read_bytes()
            assert hashlib.sha256(files["model.safetensors"]).digest() == hashlib.sha256(saved).digest()
            assert f"| steps | {step} |" in files["README.md"].decode()
            assert not any(part.startswith("_") for path in files for part in path.split("/"))
        inside = {path for path in commits[-1][2] if "checkpoint" in path.split("/")[0]}
        folder = {"every_save": None, "checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-3"}[strategy]
        local = {path.name for path in (tmp_path / "run" / "checkpoint-3").iterdir()}
        assert {path.split("/")[1] for path in inside if path.startswith(f"{folder}/")} == (local if folder else set())

    def test_the_end_strategy_uploads_when_the_model_is_saved(self, hub: Hub, tmp_path: Path) -> None:
        options = {**PUSH, "hub_strategy": "end", "save_strategy": "steps", "save_steps": 1}
        run = trainer(tmp_path / "run", options=options)
        run.train()
        assert hub["me/model"].summaries == []
        run.save_model()
        assert hub["me/model"].summaries == ["Model save"]

    def test_a_checkpoint_that_is_being_uploaded_is_not_deleted(self, hub: Hub, tmp_path: Path) -> None:
        hub.delay = 0.3
        options = {**PUSH, "hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
        run = trainer(tmp_path / "run", options={**options, "save_total_limit": 1})
        run.train()
        steps = [summary for summary in hub["me/model"].summaries if summary.endswith("checkpoint")]
        assert steps[0] == "Training in progress, step 1, checkpoint"
        assert "last-checkpoint/optimizer.pt" in hub["me/model"].files

    def test_an_upload_waits_for_the_one_before_whose_files_it_rewrites(self, hub: Hub, tmp_path: Path) -> None:
        class SaveAgain(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 2:
                    run.push_to_hub(commit_message="by hand")

        hub.delay = 0.5
        options = {**PUSH, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        run = trainer(tmp_path / "run", options=options, callbacks=[SaveAgain()])
        run.train()
        (_, first, files), (_, second, _) = hub["me/model"].commits[1:3]
        assert (first, second) == ("Training in progress, step 1", "by hand")
        saved = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
        assert files["model.safetensors"] == saved.read_bytes()

    def test_a_failed_upload_is_said_and_stops_nothing(
        self, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = trainer(tmp_path / "run", options={**PUSH, "save_strategy": "steps", "save_steps": 1})
        hub.refuse = lambda method, path: 403 if "/preupload/" in path else 0
        with caplog.at_level(logging.WARNING, "hf_contrastive_caption"):
            run.train()
        said = [record.message for record in caplog.records if "an upload to me/model failed" in record.message]
        assert said and all("403" in line and "Nothing is lost" in line for line in said)
        hub.refuse = lambda method, path: 0
        run.push_to_hub()
        assert hub["me/model"].summaries == ["End of training"]

    def test_a_card_that_cannot_be_written_is_said_and_stops_nothing(
        self, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = trainer(tmp_path / "run", options={**PUSH, "save_strategy": "steps", "save_steps": 1})
        tiny.images(1)[0].save(tmp_path / "example.png")
        run.card_content = CardContent(examples=[CardExample(tmp_path / "example.png", "a", "b")])
        (tmp_path / "example.png").unlink()
        with caplog.at_level(logging.WARNING, "hf_contrastive_caption"):
            run.train()
        assert run.state.global_step == 2 and len(hub["me/model"].summaries) >= 1
        assert "the model card could not be written, and the upload goes without it: example 0" in caplog.text

    def test_without_matplotlib_a_card_has_no_curves(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        run = trainer(tmp_path / "run", options={**PUSH, "save_strategy": "steps", "save_steps": 1})
        with caplog.at_level(logging.WARNING, "hf_contrastive_caption"):
            run.train()
            run.push_to_hub()
        assert "card/training_curves.png" not in published(hub)
        assert "curves" not in published(hub)["README.md"].decode()
        assert any("no training curves: charts are drawn by matplotlib" in record.message for record in caplog.records)
