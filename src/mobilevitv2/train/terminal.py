"""What a run shows and how it shares the processor with its own workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers shows errors alone and no bars: the run tells itself what there is to tell."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def few_host_threads(device: torch.device) -> Iterator[None]:
    """Inside, torch computes on the host with one thread where the work is the device's; as before afterwards."""
    before = torch.get_num_threads()
    if device.type == "cuda":
        # Seen with two H200 on 32 cores before this was here: the many small operations on the host woke all of torch's threads
        # again and again, and these spun while they waited (1200 % of processor time in this process, load 60). The workers that
        # decode pictures starved: 2,200 pictures a second instead of over 6,000, the device busy a tenth of the time. What one
        # thread gains has not been measured.
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
