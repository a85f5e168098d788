import pytest
import torch
from tests.reference import pruning as slow

from scrimp.errors import DataError
from scrimp.samples.loss_values import loss_values, weighted_mean

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 4, 3)])
def test_plain_losses_average_as_they_do(dtype, shape):
    losses = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    values, scores, _ = loss_values(losses)
    assert values.shape == scores.shape == (6,)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not scores.requires_grad
    wide = losses.detach().double()
    assert float(values.detach().mean()) == pytest.approx(float(wide.mean()), rel=1e-6)
    assert scores.tolist() == pytest.approx(wide.reshape(6, -1).mean(1).tolist(), rel=1e-6)
    values.mean().backward()
    assert losses.grad.dtype == dtype
    assert losses.grad.double().sum() == pytest.approx(1, rel=1e-2)


def test_masked_tokens_count_by_token():
    losses = torch.tensor([[1.0, 2, 3], [4, 5, 6]], requires_grad=True)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    found = loss_values(losses, mask)
    for weights in ([1.0, 1.0], [2.0, 0.5]):
        expected = slow.weighted_token_mean(losses.tolist(), mask.tolist(), weights)
        assert weighted_mean(found, torch.tensor(weights), None).item() == pytest.approx(expected)
    assert found.scores.tolist() == [1, 5]
    assert found.num_valid.tolist() == [1, 3]
    weighted_mean(found, None, None).backward()
    assert torch.equal(losses.grad, mask / 4)


def test_a_known_mean_length_is_the_denominator():
    found = loss_values(torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[1, 0, 0], [1, 1, 1]]))
    assert float(weighted_mean(found, torch.tensor([2.0, 1.0]), 2.5)) == pytest.approx((2 * 1 + 15) / (2 * 2.5))


def test_what_is_masked_out_may_be_infinite():
    losses = torch.tensor([[1.0, torch.inf], [torch.nan, 3]], requires_grad=True)
    found = loss_values(losses, torch.tensor([[True, False], [False, True]]))
    loss = weighted_mean(found, None, None)
    loss.backward()
    assert float(loss.detach()) == 2
    assert found.scores.tolist() == [1, 3]
    assert losses.grad.tolist() == [[0.5, 0], [0, 0.5]]


def test_a_sample_without_a_valid_token_counts_nothing():
    found = loss_values(torch.ones(2, 3), torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert float(weighted_mean(found, torch.tensor([3.0, 1.0]), None)) == 1
    assert found.scores.tolist() == [0, 1]
    assert float(weighted_mean(loss_values(torch.ones(2, 3), torch.zeros(2, 3)), None, None)) == 0


def test_terms_are_added_and_all_get_gradients():
    box = torch.tensor([1.0, 2], requires_grad=True)
    pixels = torch.tensor([[1.0, 3], [5, 7]], requires_grad=True)
    values, scores, _ = loss_values({"box": box, "pixels": pixels})
    assert values.tolist() == scores.tolist() == [3, 8]
    (values * torch.tensor([2.0, 1])).mean().backward()
    assert box.grad.tolist() == [1, 0.5]
    assert pixels.grad.tolist() == [[0.5, 0.5], [0.25, 0.25]]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.tensor(1.0), "reduction='none'"),
        ({"a": torch.tensor(1.0)}, r"losses\['a'\] is a single number"),
        ({}, "empty dict"),
        (torch.empty(0), "no samples"),
        (torch.tensor([1, 2]), "floating-point"),
        ([1.0, 2.0], "is a list"),
        ({"a": torch.ones(2), "b": torch.ones(3)}, "differ in their number"),
    ],
)
def test_what_cannot_be_split_is_refused(losses, message):
    with pytest.raises(DataError, match=message):
        loss_values(losses)


def test_a_mask_has_to_fit():
    with pytest.raises(DataError, match="mask has shape"):
        loss_values(torch.ones(2, 3), torch.ones(2))


def linear(*shape):
    return torch.nn.Linear(shape[-1], 5)(torch.ones(shape))


@pytest.mark.parametrize(
    "logits",
    [
        lambda: linear(4, 3),
        lambda: linear(4, 7, 3),
        lambda: linear(4, 7, 3).transpose(1, 2).contiguous().float(),
        lambda: linear(4, 7, 3)[:, :-1],
        lambda: linear(4, 3).log_softmax(1),
        lambda: torch.nn.Conv2d(1, 2, 3)(torch.ones(4, 1, 5, 5)),
    ],
)
def test_logits_are_no_losses(logits):
    with pytest.raises(DataError, match=r"what a layer gave \(.*reduction='none'"):
        loss_values(logits())


@pytest.mark.parametrize(
    "losses",
    [
        lambda: torch.nn.functional.cross_entropy(
            linear(4, 7, 3).transpose(1, 2), torch.zeros(4, 7).long(), reduction="none"
        ),
        lambda: (linear(4, 3) - 1) ** 2,
        lambda: linear(4, 3)[:, :1],
        lambda: torch.nn.functional.binary_cross_entropy_with_logits(linear(4, 3), torch.ones(4, 5), reduction="none"),
        lambda: torch.nn.functional.mse_loss(linear(4, 3), torch.ones(4, 5), reduction="none"),
        lambda: -linear(4, 3).log_softmax(1).gather(1, torch.zeros(4, 2).long()),
    ],
)
def test_losses_of_layers_are_losses(losses):
    assert loss_values(losses()).values.shape == (4,)
