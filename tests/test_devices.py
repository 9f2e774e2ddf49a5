import resource
import sys

import pytest
import torch

from snnkit.training.devices import memory_kept


def new_pages(tensors: int) -> int:
    """How many pages the system gives while so many tensors of 64 MiB are made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_memory_is_kept_within_and_given_back_afterwards():
    usual = new_pages(10)
    with memory_kept():
        new_pages(30)  # until the pieces fit
        assert new_pages(10) < usual / 10
    assert new_pages(10) > usual / 2
