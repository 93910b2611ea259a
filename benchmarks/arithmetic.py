"""What a core can do at best: GFLOP/s of the matrix products that a minibatch of PPO consists of. Prints one JSON line.

    python benchmarks/arithmetic.py ROWS [UNITS]

(ROWS, 64) @ (64, 64) in float32, one thread: the largest product of a 2x64 network, 2 * ROWS * 64 * 64 operations; or
of one with so many units. By torch's own product or by oneDNN's, whichever is faster here.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

from pgcli.policies.products import ONEDNN

torch.set_num_threads(1)
rows = int(sys.argv[1])
units = int(sys.argv[2]) if len(sys.argv) > 2 else 64
x, weight = torch.randn(rows, units), torch.randn(units, units)
out = torch.empty(rows, units)
flop = 2 * rows * units * units
repeats = 1 + int(2e9 / flop)  # some thirty milliseconds


def mkl() -> None:
    torch.mm(x, weight, out=out)


def onednn() -> None:
    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def products(multiply: Callable[[], None]) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        multiply()
    return time.process_time() - begun


best = min(products(multiply) for _ in range(20) for multiply in ((mkl, onednn) if ONEDNN else (mkl,)))
print(json.dumps({"gflops": repeats * flop / best / 1e9}))
