"""In a process of its own: the setting cannot be taken back."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from slimvit.utils.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
returned = faults()
if not keep_freed_memory():
    raise SystemExit(3)
faults()
print(returned, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is spoken to")
def test_freed_memory_is_used_again():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    if found.returncode == 3:
        pytest.skip("another C library than glibc")
    returned, kept = map(int, found.stdout.split())
    assert kept < returned / 10, found.stderr
