"""Completions per CPU second of the built-in transformers, and what their products would allow. Prints one JSON line.

    python benchmarks/ours_decode.py PRESET ROWS ROUNDS

ROWS prompts of 16 tokens, 44 words, 32 new tokens each, sampled with their log-probs, one thread:
    alone   every prompt another, no completion ends early
    groups  8 completions of each prompt
    ends    alone, with an end token, so that finished rows leave the cache
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

from pgcli.collectors.completions import decode
from pgcli.devices.cpu import keep_freed_memory
from pgcli.experiment.config import compose
from pgcli.policies.products import product
from pgcli.policies.transformer import Transformer
from pgcli.types import TextSpec

WORDS, PROMPT, NEW, GROUP = 44, 16, 32, 8
NEVER, END = -1, 2


def fastest(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of the quickest round: what else the machine does only adds to them."""
    found = []
    for _ in range(rounds + 2):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found[2:])


def arithmetic(policy: Transformer, rows: int) -> dict[str, float]:
    """FLOP of a token, its share of the prompt included, and the rate that the largest product of a step reaches."""
    c = policy.trunk.config
    matrices = 4 * c.width**2 + 3 * c.width * c.hidden
    below = (c.layers - 1) * matrices + 3 * c.width**2  # of a prompt's token: the top block only remembers it
    read = sum(range(PROMPT + 1, PROMPT + NEW + 1)) / NEW  # tokens that one attends to, on average
    own = 2 * (c.layers * (matrices + 2 * c.width * read) + c.width * WORDS)
    x, weight = torch.randn(rows, c.width), torch.randn(2 * c.hidden, c.width)
    seconds = fastest(lambda: [product(x, weight) for _ in range(200)], 20) / 200
    return {"flop": own + 2 * below * PROMPT / NEW, "gflops": 2 * rows * weight.numel() / seconds / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=("nano", "tiny", "small"))
    parser.add_argument("rows", type=int)
    parser.add_argument("rounds", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    spec = TextSpec(vocabulary=WORDS, prompt_length=PROMPT, completion_length=NEW, end=END, pad=0)
    config = compose(["algo=reinforce", "env=sort", f"policy={arguments.preset}"]).policy
    policy = Transformer(spec, config, critic=False, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, WORDS, (arguments.rows, PROMPT), generator=generator)
    noise = torch.rand(arguments.rows, NEW, generator=generator, dtype=torch.float64)
    cases = {"alone": (prompts, NEVER), "groups": (prompts[::GROUP].repeat_interleave(GROUP, 0), NEVER)}
    cases["ends"] = (prompts, END)
    found: dict[str, object] = arithmetic(policy, arguments.rows)
    for name, (given, end) in cases.items():

        def write(given: torch.Tensor = given, end: int = end) -> int:
            return int(decode(policy, {"prompt": given}, length=NEW, end=end, pad=0, noise=noise).mask.sum())

        found[name] = {"tokens": write(), "cpu": fastest(write, arguments.rounds)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
