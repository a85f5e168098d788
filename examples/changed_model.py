"""`base.py` with its model changed in place: ghost batch norm, CELU, frozen batch-norm scales with faster biases.

Each is one call on any model, before the optimizer is made; `param_groups` leaves the frozen scales out.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import scrimp
from scrimp import steps

NUM_TEST = 360


def load_data() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[:NUM_TEST], order[NUM_TEST:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    images, labels = data.tensors
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def train(num_epochs: int) -> nn.Module:
    torch.manual_seed(0)  # noqa: TID251 - a script may, a library may not
    train_set, test_set = load_data()
    model = make_model()
    steps.replace_activation_(model, lambda _old: nn.CELU(0.3))
    steps.ghost_batch_norm_(model, group_size=16)
    steps.freeze_bn_scale_(model)
    groups = scrimp.param_groups(model, lr=2e-3, weight_decay=0.1, rules=[steps.bias_rule(4)])
    optimizer = torch.optim.AdamW(groups)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(train_set, batch_size=64, shuffle=True, generator=order)
    for epoch in range(num_epochs):
        model.train()
        for images, labels in loader:
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(model, test_set):.4f}")
    return model


if __name__ == "__main__":
    train(num_epochs=6)
