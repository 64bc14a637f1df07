"""Augmentation of batches: targets, erasing, order."""

from __future__ import annotations

import pytest
import torch

from mobilevitv2.train import augment
from mobilevitv2.train.augment import BatchAugmentation, cut_and_mixed, mixed, random_erase, to_float


def _batch(count: int = 16, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8), torch.arange(count) % 5


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixed_targets_sum_to_one_over_at_most_two_classes(mixup: float, cutmix: float) -> None:
    pixels, labels = _batch()
    mixed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        pictures, targets = BatchAugmentation(5, mixup=mixup, cutmix=cutmix)(pixels, labels)
        assert pictures.shape == pixels.shape and targets.shape == (16, 5)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
        assert (targets >= 0).all() and ((targets > 0).sum(dim=1) <= 2).all()
        mixed += int(((targets > 0.001) & (targets < 0.999)).any())
    assert mixed >= 6


def test_cutmix_targets_are_the_shares_of_the_area() -> None:
    # Each picture is one brightness, so that its pixels tell where they came from.
    pixels = torch.arange(1, 9, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    torch.manual_seed(3)
    pictures, targets = BatchAugmentation(8, cutmix=1.0)(pixels, torch.arange(8))
    values = (pictures[:, 0] * 255).round().long() - 1
    for picture, target in zip(values, targets, strict=True):
        shares = torch.bincount(picture.flatten(), minlength=8) / 1024
        torch.testing.assert_close(shares, target, atol=1e-6, rtol=0)


def test_mixing_happens_with_its_probability_and_can_be_left_out() -> None:
    pixels, labels = _batch()
    augmentation = BatchAugmentation(5, mixup=1.0, mix_probability=0.3)
    torch.manual_seed(0)
    plain = torch.nn.functional.one_hot(labels, 5).float()
    mixed = sum(not torch.equal(augmentation(pixels, labels)[1], plain) for _ in range(200))
    assert 40 < mixed < 80
    assert all(torch.equal(augmentation(pixels, labels, mixing=False)[1], plain) for _ in range(20))


def test_without_augmentation_pictures_are_only_divided() -> None:
    pixels, labels = _batch()
    pictures, targets = BatchAugmentation(5)(pixels, labels)
    assert torch.equal(pictures, pixels.float() / 255)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, 5).float())
    assert to_float(pixels).is_contiguous(memory_format=torch.channels_last)


def test_erasing_probability_and_share() -> None:
    torch.manual_seed(0)
    pictures = torch.ones(600, 3, 64, 64)
    erased = random_erase(pictures, probability=0.25)
    black = (erased == 0).all(dim=1)
    assert torch.equal(erased, torch.where(black[:, None], 0.0, 1.0).expand_as(erased))  # the same place in all channels
    shares = black.flatten(1).float().mean(dim=1)
    hit = shares > 0
    assert 0.2 < hit.float().mean() < 0.3
    assert shares[hit].min() > 0.015 and shares[hit].max() < 0.35
    assert 0.12 < shares[hit].mean() < 0.22  # of 2 to 33 %
    for picture in black[hit][:50]:  # one rectangle
        rows, columns = picture.any(dim=1).sum(), picture.any(dim=0).sum()
        assert rows * columns == picture.sum()
        assert 0.25 < rows / columns < 4
    assert torch.equal(random_erase(pictures, probability=0.0), pictures)
    assert bool((random_erase(pictures, probability=1.0) == 0).flatten(1).any(dim=1).all())


def test_the_order_is_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def rand_augment(pixels: torch.Tensor, labels: torch.Tensor, **_: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.dtype == torch.uint8
        steps.append("randaugment")
        return pixels, labels

    def erase(pixels: torch.Tensor, *, probability: float) -> torch.Tensor:
        assert pixels.dtype == torch.uint8 and probability == 0.25
        steps.append("erase")
        return pixels

    def mixed(each: torch.Tensor, share: float) -> torch.Tensor:
        assert each.is_floating_point() and each.max() <= 1 and 0 <= share <= 1
        steps.append("mix")
        return each

    monkeypatch.setattr(augment, "rand_augment", rand_augment)
    monkeypatch.setattr(augment, "random_erase", erase)
    monkeypatch.setattr(augment, "mixed", mixed)
    BatchAugmentation(5, randaugment_operations=2, erasing=0.25, mixup=0.2)(*_batch())
    assert steps == ["randaugment", "erase", "mix", "mix"]


def test_mixup_is_torchvisions() -> None:
    pixels, labels = _batch()
    pictures, targets = to_float(pixels), torch.nn.functional.one_hot(labels, 5).float()
    for share in (0.0, 0.3, 0.9, 1.0):
        for each in (pictures, targets):
            torch.testing.assert_close(mixed(each, share), each.roll(1, 0) * (1 - share) + each * share)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.99, 1.0])
def test_cutmix_pastes_one_rectangle_of_the_picture_before(share: float) -> None:
    pixels, _ = _batch(side=40)
    pixels[:] = torch.arange(16, dtype=torch.uint8)[:, None, None, None]
    before = pixels.clone()
    for seed in range(20):
        torch.manual_seed(seed)
        out, left = cut_and_mixed(pixels, share)
        changed = (out != pixels).all(dim=1)
        assert torch.equal(out, torch.where(changed[:, None], pixels.roll(1, 0), pixels)) and torch.equal(pixels, before)
        assert torch.equal(changed, changed[:1].expand_as(changed))
        rows, columns = changed[0].any(dim=1).sum(), changed[0].any(dim=0).sum()
        assert rows * columns == changed[0].sum() <= (1 - share) * 1600 + 1e-6
        assert left == pytest.approx(1 - float(changed[0].float().mean()))


def test_labels_follow_their_pictures() -> None:
    labels = torch.arange(40) % 4
    pixels = (60 * (labels + 1)).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    pictures, targets = BatchAugmentation(4, randaugment_operations=2, randaugment_magnitude=0)(pixels, labels)
    assert torch.equal(((pictures[:, 0, 4, 4] * 255 / 60).round() - 1).long(), targets.argmax(dim=1))
