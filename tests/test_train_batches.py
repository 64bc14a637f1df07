"""Pictures to batches of bytes: crops, decoded pictures in memory, the order of the epochs, worker processes."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from classification_data import write_folder
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mobilevitv2.data.batches import CentreCrop, DecodedPictures, EpochBatches, PictureBatches, TrainCrop
from mobilevitv2.data.classification import PictureSplit, open_classification_data
from mobilevitv2.data.decoded import expected_pixels
from mobilevitv2.data.decoding import EncodedPicture
from mobilevitv2.errors import DataError, ImageError
from mobilevitv2.train.trainer import make_loader

SIZES = [(1, 1), (20000, 3), (3, 20000), (40, 36), (500, 30)]


def _split(root: Path, count: int = 6) -> PictureSplit:
    write_folder(root / "train", {"blue": count, "red": count})
    split = open_classification_data(root, validation_fraction=0).train
    assert split is not None
    return split


@pytest.mark.parametrize("size", SIZES)
def test_crops_have_the_size_asked_for_whatever_the_picture(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    for crop in (TrainCrop(24), TrainCrop(24, scale=(0.01, 0.02)), CentreCrop(24, 28)):
        pixels = crop(picture)
        assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
        assert abs(pixels.astype(int) - [10, 200, 30]).max() <= 1


def test_the_middle_of_a_long_picture_is_what_its_whole_would_give() -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (20, 1001, 3), dtype=np.uint8))
    whole = picture.resize((2002, 40), Image.Resampling.BICUBIC).crop((1001 - 16, 4, 1001 + 16, 36))
    pixels = CentreCrop(32, 40)(picture)
    assert abs(pixels.astype(int) - np.asarray(whole)).mean() < 2


def test_train_crops_keep_the_share_and_mirror() -> None:
    # Red rises to the right and green downwards, 255 over the whole picture: their range is the part that was kept.
    ramp = np.linspace(0, 255, 128)
    picture = Image.fromarray(np.stack([*np.meshgrid(ramp, ramp), np.zeros((128, 128))], axis=2).astype(np.uint8))
    torch.manual_seed(0)
    shares, mirrored = [], 0
    for _ in range(100):
        pixels = TrainCrop(32, scale=(0.25, 0.5), interpolation="bilinear")(picture).astype(int)
        wide, tall = pixels[16, -1, 0] - pixels[16, 0, 0], pixels[-1, 16, 1] - pixels[0, 16, 1]
        mirrored += wide < 0
        shares.append(abs(wide) * tall / 255**2)
    assert min(shares) > 0.2 and max(shares) < 0.55
    assert 30 < mirrored < 70
    assert (TrainCrop(8, flip=1.0)(picture)[4, :, 0].argmax()) == 0


def test_an_epoch_is_a_permutation_without_the_rest() -> None:
    batches = list(EpochBatches(50, 8, epochs=3, seed=1))
    assert len(batches) == len(EpochBatches(50, 8, epochs=3, seed=1)) == 18
    assert all(len(batch) == 8 for batch in batches)
    epochs = [list(chain(*batches[start : start + 6])) for start in (0, 6, 12)]
    assert all(len(set(epoch)) == 48 and set(epoch) <= set(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches == list(EpochBatches(50, 8, epochs=3, seed=1))
    assert batches != list(EpochBatches(50, 8, epochs=3, seed=2))


def test_accumulated_batches_are_the_parts_of_whole_ones() -> None:
    whole = list(EpochBatches(70, 16, epochs=2, seed=0))
    parts = list(EpochBatches(70, 4, epochs=2, seed=0, per_step=4))
    assert len(parts) == 4 * len(whole) == 32
    assert [list(chain(*parts[start : start + 4])) for start in range(0, 32, 4)] == whole


def test_pictures_with_their_classes(tmp_path: Path) -> None:
    split = _split(tmp_path)
    pictures = PictureBatches(split, CentreCrop(32, 36))
    assert len(pictures) == 12
    item = pictures[7]
    assert item["pixel_values"].shape == (3, 32, 32) and item["pixel_values"].dtype == torch.uint8
    assert item["labels"] == split.labels[7] == 1
    expected = CentreCrop(32, 36)(split.read(7)).transpose(2, 0, 1)
    assert np.array_equal(item["pixel_values"].numpy(), expected)


def test_decoded_pictures_are_the_pictures(tmp_path: Path) -> None:
    split = _split(tmp_path)
    cache = DecodedPictures(split, short_side=36, threads=2)
    assert cache.nbytes == 12 * 40 * 36 * 3
    for index in range(len(split)):
        assert np.array_equal(np.asarray(cache.read(index)), np.asarray(split.read(index)))
    smaller = DecodedPictures(split, short_side=18, threads=1).read(0)
    assert smaller.size == (20, 18)


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_pictures_are_replaced_and_named_once(tmp_path: Path, cached: bool, caplog: pytest.LogCaptureFixture) -> None:
    split = _split(tmp_path)
    bad = tmp_path / "train" / "blue" / "003.png"
    bad.write_bytes(b"no picture")
    cache = DecodedPictures(split, short_side=36, threads=1) if cached else None
    if cache is not None:
        with pytest.raises(ImageError):
            cache.read(3)
    pictures = PictureBatches(split, CentreCrop(32, 36), cache=cache)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(pictures[3]["pixel_values"], pictures[4]["pixel_values"])
    assert [record.getMessage().count("003.png") > 0 for record in caplog.records] == [True]


def test_nothing_but_unreadable_pictures_is_an_error(tmp_path: Path) -> None:
    split = _split(tmp_path, count=2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="run the data check"):
        PictureBatches(split, CentreCrop(32, 36))[0]


def test_worker_processes_give_the_same_batches_in_order(tmp_path: Path) -> None:
    pictures = PictureBatches(_split(tmp_path), CentreCrop(32, 36))
    order = [[3, 1], [7, 8], [0, 11]]
    alone = list(make_loader(pictures, order, workers=0, pin=False))
    helped = list(make_loader(pictures, order, workers=2, pin=False))
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])


def test_crops_of_large_photographs_are_those_of_the_whole(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1200)
    pixels = np.stack([*np.meshgrid(ramp, ramp[:900]), np.full((900, 1200), 128.0)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, options in enumerate([{}, {"exif": exif}]):
        file = tmp_path / f"{number}.jpg"
        Image.fromarray(pixels).save(file, quality=95, **options)
        picture = EncodedPicture(file.read_bytes(), "photograph")
        decoded = picture.pixels(short_side=225).shape
        assert min(decoded[:2]) == 225  # a quarter: what a crop of the whole asks for
        for seed in range(10):
            torch.manual_seed(seed)
            found = TrainCrop(100).of_file(picture)
            torch.manual_seed(seed)
            whole = TrainCrop(100)(picture.pixels())
            assert np.abs(found.astype(int) - whole).max() <= 6  # half a pixel of the quarter, and JPEG's own noise


def test_what_is_drawn_is_torchvisions() -> None:
    crop = TrainCrop(8, scale=(0.2, 0.9), ratio=(0.5, 2.0))
    torch.manual_seed(0)
    boxes = np.array([crop.draw(300, 200) for _ in range(4000)])
    theirs = [RandomResizedCrop.get_params(torch.zeros(1, 200, 300), [0.2, 0.9], [0.5, 2.0]) for _ in range(4000)]
    top, left, tall, wide = np.array(theirs).T
    for ours, expected in ((boxes[:, 0], left), (boxes[:, 1], top), (boxes[:, 2], left + wide), (boxes[:, 3], top + tall)):
        assert np.abs(np.quantile(ours, [0.1, 0.5, 0.9]) - np.quantile(expected, [0.1, 0.5, 0.9])).max() < 12
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 300 and boxes[:, 3].max() <= 200
    assert TrainCrop(8, scale=(1.0, 1.0)).draw(1000, 10) == (493, 0, 506, 10)  # nothing fits: the middle, no longer than the ratio


def test_batches_are_channels_last_in_memory_and_shared(tmp_path: Path) -> None:
    pictures = PictureBatches(_split(tmp_path), CentreCrop(32, 36))
    for workers in (0, 1):
        batch = next(iter(make_loader(pictures, [[0, 5, 7]], workers=workers, pin=False)))
        assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        assert batch["pixel_values"].is_shared() == (workers > 0)
        assert torch.equal(batch["pixel_values"][1], pictures[5]["pixel_values"])


def test_large_pictures_are_kept_smaller_and_their_scale_told(tmp_path: Path) -> None:
    (tmp_path / "train" / "one").mkdir(parents=True)
    photo = Image.linear_gradient("L").resize((900, 600)).convert("RGB")
    photo.save(tmp_path / "train" / "one" / "a.jpg", quality=95)
    photo.save(tmp_path / "train" / "one" / "b.png")
    split = open_classification_data(tmp_path, validation_fraction=0).train
    assert split is not None
    cache = DecodedPictures(split, short_side=60, threads=2)
    assert round(expected_pixels(split, short_side=60)) == 2 * 90 * 60 and cache.nbytes == 3 * 2 * 90 * 60
    expected = np.asarray(photo.resize((90, 60), Image.Resampling.BICUBIC)).astype(int)
    for index in range(2):
        assert np.abs(cache.pixels(index).astype(int) - expected).mean() < 1.5
        assert cache.scale(index).tolist() == pytest.approx([0.1, 0.1])
