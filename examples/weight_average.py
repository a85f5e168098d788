"""`base.py` with a weight average, evaluated inside `swap()` and over views: each image as it is and shifted both ways.

The views here are shifts and not mirror images, because a mirrored 2 is no digit.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

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
    views = [steps.identity, steps.shift(0, 1), steps.shift(0, -1)]
    outputs = steps.predict_with_views(model, images, views, weights=[2, 1, 1])
    return (outputs.argmax(dim=1) == labels).float().mean().item()


def train(num_epochs: int) -> nn.Module:
    torch.manual_seed(0)  # noqa: TID251 - a script may, a library may not
    train_set, test_set = load_data()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    average = steps.WeightAverage(model, decay=0.97, every=2)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(train_set, batch_size=64, shuffle=True, generator=order)
    for epoch in range(num_epochs):
        model.train()
        for images, labels in loader:
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            average.update()
            optimizer.zero_grad()
        with average.swap():
            print(f"epoch {epoch + 1}: test accuracy {accuracy(model, test_set):.4f}")
    return model


if __name__ == "__main__":
    train(num_epochs=6)
