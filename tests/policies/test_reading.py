import pytest
import torch

from pgcli.policies.reading import read, read_once
from pgcli.policies.trunk import Trunk, TrunkSettings, _rotary

VOCABULARY, P = 9, 5


@pytest.fixture
def trunk():
    """In float64, where only a slip is larger than the tolerance; its gains are not one, as they are in a new one."""
    generator = torch.Generator().manual_seed(0)
    made = Trunk(VOCABULARY, 12, TrunkSettings(width=24, layers=3, heads=2, hidden=20), generator).double()
    for gains in (p for p in made.parameters() if p.dim() == 1):
        torch.nn.init.normal_(gains, generator=generator)
    torch.set_default_dtype(torch.float64)
    made.rotary = _rotary(12, 12)
    torch.set_default_dtype(torch.float32)
    return made


@pytest.mark.parametrize("padding", [None, (0, 0, 0, 0, 0, 0), (2, 2, 0, 4, 2, 0)], ids=["none", "zero", "ragged"])
@pytest.mark.parametrize(("following", "last"), [(6, 7), (6, 6), (0, 1), (1, 1)])
def test_one_node_has_the_hidden_states_and_the_gradient_of_the_trunk(trunk, padding, following, last):
    # Rows 0, 1 and 4 begin with one prompt, and so do 2 and 5; where rows 2 and 0 are padded they differ all the same.
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCABULARY, (3, P), generator=generator)[[0, 0, 1, 2, 0, 1]]
    tokens = torch.randint(VOCABULARY, (6, following), generator=generator)
    upstream = torch.randn(6, last, 24, generator=generator, dtype=torch.float64)
    padded = None if padding is None else torch.tensor(padding)
    found = []
    for reader in (read, read_once):
        trunk.zero_grad()
        hidden = reader(trunk, prompts, tokens, last, padded)
        (hidden * upstream).sum().backward()
        found.append([hidden.detach(), *(p.grad.clone() for p in trunk.parameters())])
    for own, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, own, atol=1e-11, rtol=1e-9)


def test_long_rows_are_read_by_the_trunk_s_own_pass(trunk, monkeypatch):
    prompts, tokens = torch.zeros(2, P, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    short = read_once(trunk, prompts, tokens, 4, None)
    monkeypatch.setattr("pgcli.policies.reading.SHORT", P + 2)
    monkeypatch.delattr("pgcli.policies.reading._Read")
    torch.testing.assert_close(read_once(trunk, prompts, tokens, 4, None), short, atol=1e-11, rtol=1e-9)


def test_equal_tokens_that_are_padded_differently_are_two_prompts(trunk):
    prompts, tokens = torch.zeros(2, P, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)
    first, second = read_once(trunk, prompts, tokens, 4, torch.tensor([0, 3]))
    alone = read_once(trunk, prompts[1:], tokens[1:], 4, torch.tensor([3]))[0]
    torch.testing.assert_close(second, alone, atol=1e-11, rtol=1e-9)
    assert not torch.allclose(first, second)


def test_a_second_derivative_is_refused(trunk):
    tokens = torch.zeros(1, P, dtype=torch.int64)
    hidden = read_once(trunk, tokens, tokens, P, None)
    (slope,) = torch.autograd.grad(hidden.square().sum(), trunk.norm, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
