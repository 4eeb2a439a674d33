"""Tune a chat model that sees, such as SmolVLM or Qwen2-VL, to describe pictures: with a prompt and LoRA.

    python examples/chat_vlm.py --data photographs --output runs/smolvlm
    python examples/chat_vlm.py --data photographs --output runs/qwen --model Qwen/Qwen2-VL-2B-Instruct
    python examples/chat_vlm.py --output runs/tiny-chat

``--data`` is a folder with parquet files or images (see docs/cli.md) that has the splits train and test. The third
command needs no download: it draws scenes, and makes a tiny chat model, which learns to caption them first.

The prompt is asked through the model's chat template and is saved with the adapter, so that later it is asked again.
The vision tower is frozen and its states are kept on disk (``--no-cache`` where there is no room for them), so that no
image is encoded while training. Only the adapter trains; the reference is the model with it switched off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from tokenizers import processors
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    set_seed,
)

from hf_contrastive_caption import Captioner, ContrastiveCaptionConfig, ContrastiveCaptionTrainer, scenes
from hf_contrastive_caption.data.files import choose_split, load_splits
from hf_contrastive_caption.demo.start import train_to_start
from hf_contrastive_caption.models import word_level_tokenizer

CHECKPOINT = "HuggingFaceTB/SmolVLM-256M-Instruct"


def main(arguments: list[str] | None = None) -> ContrastiveCaptionTrainer:
    options = parse(arguments)
    if options.data is None:
        data = scenes(options.images, 2, max(options.images // 10, 10))
        model = options.model or tiny_chat_model(options, data["train"])
    else:
        data, model = load_splits(options.data), options.model or CHECKPOINT
    train, test = choose_split(data, "train")[1], choose_split(data, "test")[1]

    trainer = ContrastiveCaptionTrainer(
        model=model,
        args=ContrastiveCaptionConfig(
            output_dir=str(options.output / "adapter"),
            prompt=options.prompt,
            model_init_kwargs={"dtype": options.dtype},
            freeze_vision_encoder=True,
            cache_vision_states=options.cache,
            precomputed_dir=str(options.output / "states") if options.cache else None,
            num_train_epochs=1,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=train,
        peft_config=LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=options.target_modules),
    )
    print(f"The reference is {trainer.reference.description}.")
    trainer.train()
    trainer.save_model()
    comparison = trainer.compare_with_reference(test, folder=options.output / "report", max_new_tokens=40)
    print(comparison.to_markdown())

    captioner = Captioner.from_pretrained(options.output / "adapter")  # asks the prompt that was saved with it
    print(f"\n{options.prompt}", *captioner.caption(test["image"][:3], max_new_tokens=40), sep="\n  ")
    return trainer


# --- a tiny chat model, so that the example runs without a download --------------------------------------------------

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def tiny_chat_model(options: argparse.Namespace, train: Dataset) -> str:
    """A SmolVLM from scratch that has learned to caption drawn scenes; the folder that it is in."""
    captions = [caption for row in train["captions"] for caption in row]
    tokenizer = word_level_tokenizer([*captions, options.prompt, "user : assistant :"])
    # The chat template ends an answer, not the tokenizer.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    processor = Idefics3Processor(pixels, tokenizer, image_seq_len=16, chat_template=CHAT_TEMPLATE)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = LlamaConfig(**sizes, **tokens, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    config = SmolVLMConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 8},
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,  # 8 x 8 patches become 4 x 4 image tokens
    )
    set_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return train_to_start(
        options.output / "start", model, processor, train, steps=options.start_steps, prompt=options.prompt
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help=f"folder or repository (default: {CHECKPOINT}; without --data a tiny one from scratch)")
    add("--data", help="folder, parquet file, or name of a data set (default: drawn scenes)")
    add("--output", type=Path, required=True, help="folder for adapter, states and report")
    add("--prompt", default="Describe the picture.", help="default: %(default)s")
    add("--dtype", default="float32", help="of the weights; bfloat16 where they are many (default: %(default)s)")
    add("--no-cache", dest="cache", action="store_false", help="encode the images in every step")
    add("--rank", type=int, default=16, help="of the adapter (default: %(default)s)")
    add("--target-modules", default=r".*(language|text)_model.*[qv]_proj", help="default: %(default)s")
    add("--steps", type=int, default=-1, help="of tuning (default: one epoch)")
    add("--batch-size", type=int, default=16, help="images in a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-4, help="highest (default: %(default)s)")
    add("--images", type=int, default=6000, help="scenes to draw (default: %(default)s)")
    add("--start-steps", type=int, default=1200, help="that train the tiny chat model (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
