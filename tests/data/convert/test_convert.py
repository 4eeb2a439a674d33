"""Captioning data sets in the forms that they come in, as parquet files."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_contrastive_caption.data import BadImageError
from hf_contrastive_caption.data.convert import convert_captions
from hf_contrastive_caption.data.convert.annotations import read_annotations, split_of_name
from hf_contrastive_caption.data.convert.pictures import ImageFolder
from hf_contrastive_caption.data.files import load_splits


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 8)) -> bytes:
    """Write a picture of noise; gives the bytes of its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def table(folder: Path, text: str, name: str = "captions.txt") -> Path:
    file = folder / name
    file.write_bytes(text.encode("utf-8"))
    return file


def as_read(file: Path, **options) -> list[tuple[str, str, list[str]]]:
    return [(image.path, image.split, image.captions) for image in read_annotations(file, **options)[1]]


KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "1.jpg", "imgid": 0, "cocoid": 391895, "split": "test",
         "sentences": [{"raw": "A man – “on” a bike.", "tokens": ["a"]}, {"raw": " "}]},
        {"filepath": "train2014", "filename": "1.jpg", "imgid": 1, "cocoid": 7, "split": "train",
         "sentences": [{"raw": "Ein Café"}]},
        {"filepath": "val2014", "filename": "2.jpg", "imgid": 2, "cocoid": 8, "split": "restval",
         "sentences": [{"raw": "two"}]},
        {"filepath": "val2014", "filename": "3.jpg", "imgid": 3, "cocoid": 9, "split": "val",
         "sentences": [{"raw": "three"}]},
    ],
}  # fmt: skip


def karpathy(folder: Path) -> tuple[Path, dict[str, bytes]]:
    names = ("val2014/1.jpg", "train2014/1.jpg", "val2014/2.jpg", "val2014/3.jpg")
    files = {name: picture(folder / "images" / name, seed) for seed, name in enumerate(names)}
    return table(folder, json.dumps(KARPATHY), "dataset_coco.json"), files


def test_karpathys_splits_become_a_data_set_with_the_bytes_of_its_files(tmp_path):
    file, files = karpathy(tmp_path)
    done = convert_captions(file, tmp_path / "images", tmp_path / "out")
    assert done.images == {"test": 1, "train": 2, "validation": 1} == done.captions
    assert (done.empty_captions, done.missing, done.broken, done.without_captions) == (1, 0, 0, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]
    splits = load_splits(tmp_path / "out")
    assert splits["train"]["captions"][:] == [["Ein Café"], ["two"]]
    assert splits["train"]["image_id"][:] == ["7", "8"]
    assert splits["test"]["captions"][:] == [["A man – “on” a bike."]]
    # Two files are called 1.jpg, and each image has its own.
    for split, name in (("test", "val2014/1.jpg"), ("train", "train2014/1.jpg"), ("validation", "val2014/3.jpg")):
        image = splits[split][0]["image"]
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(files[name]))))
        raw = splits[split].data.column("image")[0].as_py()
        assert raw == {"bytes": files[name], "path": Path(name).name}


def test_restval_and_one_split_for_all(tmp_path):
    file, _ = karpathy(tmp_path)
    assert [split for _, split, _ in as_read(file, restval=False)] == ["test", "train", "validation"]
    assert {split for _, split, _ in as_read(file, split="test")} == {"test"}


def test_cocos_captions_are_grouped_by_image_and_the_split_is_in_the_name(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 4, "file_name": "4.jpg"}],
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "c"},
            {"image_id": 5, "id": 2, "caption": "a"},
            {"image_id": 3, "id": 3, "caption": "b"},
        ],
    }
    file = table(tmp_path, json.dumps(content), "captions_val2017.json")
    assert as_read(file) == [
        ("5.jpg", "validation", ["a"]), ("3.jpg", "validation", ["c", "b"]), ("4.jpg", "validation", []),
    ]  # fmt: skip
    for seed, name in enumerate(("3.jpg", "5.jpg")):
        picture(tmp_path / "images" / name, seed)
    done = convert_captions(file, tmp_path / "images", tmp_path / "out")
    assert done.images == {"validation": 2} and done.captions == {"validation": 3} and done.without_captions == 1
    # A second file adds its split to the same folder.
    other = table(tmp_path, json.dumps(content), "captions_train2017.json")
    convert_captions(other, tmp_path / "images", tmp_path / "out")
    assert load_splits(tmp_path / "out").num_rows == {"train": 2, "validation": 2}
    nameless = table(tmp_path, json.dumps(content), "captions.json")
    with pytest.raises(ValueError, match="does not say which split"):
        read_annotations(nameless)
    with pytest.raises(ValueError, match="is for an image 3 not in it"):
        read_annotations(table(tmp_path, json.dumps({**content, "images": content["images"][:1]}), "train.json"))
    assert split_of_name("captions_train2017") == "train" and split_of_name("constraints") is None


TABLES = {
    "flickr8k of kaggle": (
        "captions.txt",
        'image,caption\r\na.jpg,"A ""dog"", running ."\r\nb.jpg,ein Hündchen 🐕\r\na.jpg,  \r\n\r\na.jpg,second\r\n',
        [("a.jpg", 'A "dog", running .'), ("a.jpg", "  "), ("a.jpg", "second"), ("b.jpg", "ein Hündchen 🐕")],
    ),
    "flickr30k": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| A man \"says\" hi , then goes .\na.jpg| 1   A dog runs .\n",
        [("a.jpg", ' A man "says" hi , then goes .'), ("a.jpg", "A dog runs .")],
    ),
    "tokens": (
        "Flickr8k.token.txt",
        "a.jpg#0\tA child , in a pink dress\na.jpg#1\t\"quoted\nb.jpg#0\tx\n",
        [("a.jpg", "A child , in a pink dress"), ("a.jpg", '"quoted'), ("b.jpg", "x")],
    ),
    "byte order mark and semicolons": (
        "own.csv",
        "\ufeffcaption;file_name\nhello, you;x/ä.png\nthere;y/ä.png\n",
        [("x/ä.png", "hello, you"), ("y/ä.png", "there")],
    ),
    "tabs, by a writer of CSV": (
        "own.tsv",
        'image\tcaption\na.png\t"a ""stop"" sign"\nb.png\t"""Open"" it says"\nc.png\t"two" and "three"\n',
        [("a.png", 'a "stop" sign'), ("b.png", '"Open" it says'), ("c.png", '"two" and "three"')],
    ),
    "no header": ("own.tsv", "a.png\tone\nb.png\ttwo\n", [("a.png", "one"), ("b.png", "two")]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables(tmp_path, kind):
    name, text, expected = TABLES[kind]
    found = as_read(table(tmp_path, text, name))
    assert [(path, caption) for path, _, captions in found for caption in captions] == expected
    assert {split for _, split, _ in found} == {"train"}


def test_a_table_with_splits_and_columns_of_other_names(tmp_path):
    file = table(tmp_path, "photo,words,split\n1.png,one,val\n1.png,more,val\n2.png,two,train\n", "own.csv")
    with pytest.raises(
        ValueError, match="its columns are photo, words, split. Name the right one with --image-column"
    ):
        read_annotations(file)
    found = as_read(file, image_column="Photo", caption_column="words")
    assert found == [("1.png", "validation", ["one", "more"]), ("2.png", "train", ["two"])]
    with pytest.raises(ValueError, match="no column 'word'"):
        read_annotations(file, image_column="photo", caption_column="word")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,caption\na.jpg,one, two\n", "line 2 of a.csv has 3 columns"),
        ("a.csv", 'image,caption\na.jpg,"one\n', "a.csv is no table"),
        ("a.csv", "image,caption\n,one\n", "line 2 of a.csv names no image"),
        ("a.csv", "", "a.csv is empty"),
        ("a.csv", "image,caption,split\na.jpg,one,testA\n", "a split 'testA'"),
        ("a.json", "{", "a.json is no JSON"),
        ("a.json", "[]", "no list of images"),
        ("a.json", '{"images": [{"id": 1}]}', "without captions"),
        ("a.json", '{"images": [{"sentences": []}]}', "is broken: KeyError: 'split'"),
        ("train.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}', "no caption"),
        (
            "train.json",
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": null}]}',
            "train.json is broken: TypeError: None is no caption",
        ),
        ("a.xml", "<a/>", "of no known kind"),
    ],
)
def test_broken_annotations_name_the_place(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_annotations(table(tmp_path, text, name))


def test_missing_and_broken_images_are_named_or_counted(tmp_path):
    lines = "image,caption\na.png,one\ngone.png,two\nbad.png,three\n"
    file, images, out = table(tmp_path, lines), tmp_path / "images", tmp_path / "out"
    picture(images / "a.png")
    (images / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 3 images are not in .*: gone.png. .*--skip-missing"):
        convert_captions(file, images, out)
    with pytest.raises(BadImageError, match=r"bad.png.*does not open.*--skip-bad"):
        convert_captions(file, images, out, skip_missing=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "images"]  # nothing is left behind
    seen: list[tuple[int, int]] = []
    done = convert_captions(
        file, images, out, skip_missing=True, skip_broken=True, advance=lambda *numbers: seen.append(numbers)
    )
    assert (done.images, done.missing, done.broken) == ({"train": 1}, 1, 1)
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="train-00000-of-00001.parquet already"):
        convert_captions(file, images, out, skip_missing=True, skip_broken=True)
    (images / "a.png").unlink()
    with pytest.raises(ValueError, match="nothing is left"):
        convert_captions(file, images, tmp_path / "other", skip_missing=True, skip_broken=True)
    assert not (tmp_path / "other").exists()


def test_files_are_found_by_path_then_by_name_and_never_outside(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Käse.png")
    for name in ("a/1.png", "b/1.png", "b/2.png", f"c/{decomposed}", "3.png"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "secret.png")
    folder = ImageFolder(tmp_path / "images")
    assert folder.find("b/1.png") == tmp_path / "images/b/1.png"
    assert folder.find("b\\1.png") == tmp_path / "images/b/1.png"
    assert folder.find("elsewhere/3.png") == tmp_path / "images/3.png"
    assert folder.find("2.png") == tmp_path / "images/b/2.png"
    assert folder.find("Käse.png") == tmp_path / "images/c" / decomposed
    assert folder.find("4.png") is None
    with pytest.raises(ValueError, match="2 files have its name"):
        folder.find("1.png")
    for outside in ("", "../secret.png", str(tmp_path / "secret.png"), "C:/secret.png"):
        with pytest.raises(ValueError, match="not inside of a folder"):
            folder.find(outside)


def test_an_image_of_another_path_is_not_taken_for_a_missing_one(tmp_path):
    for name in ("VG/1.png", "VG/2.png", "3.png"):
        picture(tmp_path / "images" / name)
    folder = ImageFolder(tmp_path / "images")
    found = folder.find_all(["VG/1.png", "VG_2/1.png", "other/2.png", "VG\\1.png", "cat/3.png", "dog/3.png"])
    images = tmp_path / "images"
    assert found == [images / "VG/1.png", None, images / "VG/2.png", images / "VG/1.png", None, None]
    file = table(tmp_path, "image,caption\nVG/1.png,one\nVG_2/1.png,two\n")
    with pytest.raises(ValueError, match="1 of 2 images are not in .*: VG_2/1.png"):
        convert_captions(file, images, tmp_path / "out")
    assert convert_captions(file, images, tmp_path / "out", skip_missing=True).missing == 1


def test_links_between_folders_are_no_second_file_and_no_endless_walk(tmp_path):
    picture(tmp_path / "images" / "train2017" / "1.png")
    (tmp_path / "images" / "train").symlink_to(tmp_path / "images" / "train2017")
    (tmp_path / "images" / "train2017" / "round").symlink_to(tmp_path / "images")
    found = ImageFolder(tmp_path / "images").find("elsewhere/1.png")
    assert found is not None and found.resolve() == tmp_path / "images" / "train2017" / "1.png"
    (tmp_path / "images" / "copy").mkdir()
    (tmp_path / "images" / "copy" / "1.png").symlink_to(tmp_path / "images" / "train2017" / "1.png")
    found = ImageFolder(tmp_path / "images").find("1.png")
    assert found is not None and found.resolve() == tmp_path / "images" / "train2017" / "1.png"


def test_large_sets_are_divided_into_files_of_limited_size(tmp_path):
    names = [f"{number:02}.png" for number in range(10)]
    sizes = [len(picture(tmp_path / "images" / name, seed, (40, 40))) for seed, name in enumerate(names)]
    file = table(tmp_path, "image,caption\n" + "".join(f"{name},about {name}\n" for name in names))
    limit = 3 * max(sizes)
    convert_captions(file, tmp_path / "images", tmp_path / "out", shard_bytes=limit)
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == [f"train-{number:05}-of-00004.parquet" for number in range(4)]
    assert all(path.stat().st_size < limit + 10_000 for path in files)  # what stands around the images
    train = load_splits(tmp_path / "out")["train"]
    assert train["captions"][:] == [[f"about {name}"] for name in names]
    assert np.array_equal(np.asarray(train[9]["image"]), np.asarray(Image.open(tmp_path / "images" / names[9])))


def test_images_are_made_smaller_on_request_only(tmp_path):
    for name, size in (("wide.jpg", (100, 50)), ("small.png", (20, 10)), ("high.png", (30, 90))):
        picture(tmp_path / "images" / name, size=size)
    turned = Image.new("RGB", (100, 50))
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    turned.save(tmp_path / "images" / "turned.jpg", exif=exif)
    file = table(tmp_path, "image,caption\nwide.jpg,a\nsmall.png,b\nhigh.png,c\nturned.jpg,d\nphone.jpg,e\n")
    second = Image.new("RGB", (100, 50), (9, 9, 9))
    turned.save(tmp_path / "images" / "phone.jpg", format="MPO", save_all=True, append_images=[second], exif=exif)
    convert_captions(file, tmp_path / "images", tmp_path / "out", image_size=40)
    train = load_splits(tmp_path / "out")["train"]
    assert [image.size for image in train["image"]] == [(40, 20), (20, 10), (13, 40), (20, 40), (20, 40)]
    kept = [image["bytes"] for image in train.data.column("image").to_pylist()]
    assert kept[1] == (tmp_path / "images/small.png").read_bytes()
    assert [Image.open(io.BytesIO(content)).format for content in kept] == ["JPEG", "PNG", "PNG", "JPEG", "JPEG"]


def test_columns_are_found_by_the_library(tmp_path):
    from hf_contrastive_caption.data import find_columns

    file, _ = karpathy(tmp_path)
    convert_captions(file, tmp_path / "images", tmp_path / "out")
    columns = find_columns(load_splits(tmp_path / "out")["train"].features)
    assert (columns.image, columns.captions, columns.image_id) == ("image", ("captions",), "image_id")
