"""Crops drawn per sample against Page's grouped ones: each sample sees the same, a batch more."""

import torch
from tests.reference.grouped_augmentation import grouped_crop

from scrimp._core.rng import generator
from scrimp.steps import RandomCrop

NUM_CROPS = 25  # of padding 2


def numbered(num):
    """Images of which every crop of padding 2 has its own first pixel."""
    return torch.arange(25, dtype=torch.float32).view(1, 1, 5, 5).repeat(num, 1, 1, 1)


def crops_seen(images):
    """Which crop each sample got, as a number, by what it shows in its centre (the only pixel never reflected)."""
    return images[:, 0, 2, 2].long()


def per_sample(images, seed):
    crop = RandomCrop(2)
    return crop.apply(images, crop.draw(torch.arange(len(images)), 0, generator(seed)))


def test_a_sample_sees_every_crop_equally_often_either_way():
    num_epochs = 2500
    for seen_in in (per_sample, lambda x, seed: grouped_crop(x, 2, generator(seed))):
        first = torch.stack([crops_seen(seen_in(numbered(50), epoch))[0] for epoch in range(num_epochs)])
        counts = torch.bincount(first, minlength=NUM_CROPS).double()
        assert len(counts) == NUM_CROPS
        chi_square = ((counts - num_epochs / NUM_CROPS) ** 2 / (num_epochs / NUM_CROPS)).sum()
        assert chi_square < 24 + 5 * 48**0.5


def test_groups_share_a_crop_and_samples_do_not():
    num = 100 * NUM_CROPS
    grouped = torch.bincount(crops_seen(grouped_crop(numbered(num), 2, generator(0))), minlength=NUM_CROPS)
    assert (grouped == 100).all()  # even shares: the crops of two samples are not independent
    own = torch.bincount(crops_seen(per_sample(numbered(num), 0)), minlength=NUM_CROPS).double()
    assert own.std() > 5  # a multinomial's is 9.8
    few = crops_seen(grouped_crop(numbered(50), 2, generator(0), max_options=4))
    assert len(few.unique()) == 4  # Page's limit on options: an epoch then misses most crops
