"""What is said of the machine, and how memory is measured on a CPU, where nobody keeps count."""

import torch

from ftlib.session import device

MEGABYTES = 1_000_000


def test_peak_is_the_most_that_was_held_at_once_and_not_the_sum() -> None:
    def work() -> None:
        first = torch.ones(10 * MEGABYTES, dtype=torch.uint8)
        del first
        second = torch.ones(4 * MEGABYTES, dtype=torch.uint8)
        third = torch.ones(8 * MEGABYTES, dtype=torch.uint8)
        del second, third

    assert device.peak_above(work, use_cpu=True) == 12 * MEGABYTES


def test_peak_leaves_out_what_was_held_before() -> None:
    held = torch.ones(50 * MEGABYTES, dtype=torch.uint8)
    assert device.peak_above(lambda: held[: 3 * MEGABYTES].clone(), use_cpu=True) == 3 * MEGABYTES
