import pytest
import torch

from pgcli.policies.choosing import choose, choose_once


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "used", [(0,), (1,), (2,), (0, 1), (0, 1, 2)],
    ids=["log-probs", "entropy", "logits", "log-probs and entropy", "all"],
)  # fmt: skip
def test_one_node_has_the_values_and_the_gradient_of_the_ordinary_operations(used, temperature):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, unembedding = normal(4, 5, 8).requires_grad_(), normal(9, 8).requires_grad_()
    actions = torch.randint(9, (4, 5), generator=generator)
    upstream = normal(4, 5), normal(4, 5), normal(4, 5, 9)
    found = []
    for chooser in (choose, choose_once):
        choice = chooser(hidden, unembedding, actions, temperature)
        total = sum((choice[i] * upstream[i]).sum() for i in used)
        found.append([*(x.detach() for x in choice), *torch.autograd.grad(total, (hidden, unembedding))])
    for own, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, own, atol=1e-12, rtol=1e-12)


def test_a_second_derivative_is_refused():
    hidden, unembedding = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    choice = choose_once(hidden, unembedding, torch.tensor([0, 3]), 1.0)
    (slope,) = torch.autograd.grad(choice.log_probs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
