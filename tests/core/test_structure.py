import copy
import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.structure import apply_slowly, compose_slowly, slice_slowly
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from scrimp._core.state_tree import flatten_state, unflatten_state
from scrimp._core.structure import (
    HoldsCopies,
    Structure,
    StructureChange,
    apply_structure_,
    apply_structure_change,
    read_structure,
)
from scrimp.errors import FormatError, StructureError


def idx(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def change_of(plain: dict[str, dict[int, list[int]]]) -> StructureChange:
    return StructureChange({n: tuple((d, idx(*kept)) for d, kept in dims.items()) for n, dims in plain.items()})


def plain_of(change: StructureChange) -> dict[str, dict[int, list[int]]]:
    return {name: {dim: index.tolist() for dim, index in slices} for name, slices in change.kept.items()}


# ---------------------------------------------------------------------------------------------------------- the value


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (((0, idx(1, 0)),), "ascending and unique"),
        (((0, idx(1, 1)),), "ascending and unique"),
        (((0, idx(-1, 0)),), "non-negative"),
        (((0, idx()),), "zero width"),
        (((0, torch.tensor([0], dtype=torch.int32)),), "1-D int64"),
        (((0, torch.tensor([[0]])),), "1-D int64"),
        (((0, [0, 1]),), "list"),
        (((-1, idx(0)),), "integer from 0"),
        (((True, idx(0)),), "integer from 0"),
        (((0, idx(0)), (0, idx(1))), "given twice"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_at_construction(slices, message):
    with pytest.raises(StructureError, match=message):
        StructureChange({"a.weight": slices})


def test_a_change_owns_its_indices():
    index = idx(0, 2)
    change = StructureChange({"a": ((0, index),)})
    index[0] = 1
    assert plain_of(change) == {"a": {0: [0, 2]}}


def test_empty_equal_and_digest():
    assert StructureChange({}).is_empty
    assert StructureChange({"a": ()}) == StructureChange({})
    one = StructureChange({"b": ((1, idx(0)), (0, idx(3, 5))), "a": ((0, idx(1)),)})
    same = StructureChange({"a": ((0, idx(1)),), "b": ((0, idx(3, 5)), (1, idx(0)))})
    assert one == same
    assert len({one, same}) == 1
    assert not one.is_empty
    # Pinned: ranks and versions compare by it.
    assert one.digest() == "8166b0c3d06677ad501a7c605cfd891f"
    assert one != StructureChange({"a": ((0, idx(1)),), "b": ((0, idx(3, 6)), (1, idx(0)))})
    assert "b[dim 0: 2, dim 1: 1]" in repr(one)


def test_state_is_flat_and_survives_storage():
    change = change_of({"odd/name.weight": {0: [1, 4], 10: [0]}, "b": {1: [2]}})
    state = change.to_state()
    assert set(state) == {"odd/name.weight/0", "odd/name.weight/10", "b/1"}
    assert StructureChange.from_state(unflatten_state(*flatten_state(state))) == change
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert StructureChange.from_state(torch.load(buffer, weights_only=True)) == change
    for key in ("weight", "/0", "a/-1", "a/x"):
        with pytest.raises(FormatError, match="stored structure change"):
            StructureChange.from_state({key: idx(0)})


@st.composite
def chains(draw, length: int):
    """A tensor shape and plain changes that follow one another on it (and on a second tensor)."""
    first = {"a": tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))), "b": (draw(st.integers(1, 5)),)}
    shapes = dict(first)
    changes = []
    for _ in range(length):
        change: dict[str, dict[int, list[int]]] = {}
        for name, shape in first.items():
            for dim in range(len(shape)):
                if draw(st.booleans()):
                    sizes = list(shapes[name])
                    kept = sorted(draw(st.sets(st.integers(0, sizes[dim] - 1), min_size=1)))
                    change.setdefault(name, {})[dim] = kept
                    sizes[dim] = len(kept)
                    shapes[name] = tuple(sizes)
        changes.append(change)
    return first, changes


@given(chains(1))
@settings(max_examples=60, deadline=None)
def test_slice_equals_the_slow_twin(chain):
    shapes, (plain,) = chain
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    change = change_of(plain)
    for name, expected in apply_slowly(tensors, plain).items():
        assert torch.equal(change.slice(name, tensors[name]), expected)


@given(chains(3))
@settings(max_examples=60, deadline=None)
def test_then_is_one_after_the_other_and_associative(chain):
    shapes, plains = chain
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    a, b, c = map(change_of, plains)
    assert plain_of(a.then(b)) == compose_slowly(*plains[:2])
    assert a.then(b).then(c) == a.then(b.then(c))
    for name, tensor in tensors.items():
        assert torch.equal(a.then(b).then(c).slice(name, tensor), c.slice(name, b.slice(name, a.slice(name, tensor))))
    assert a.then(StructureChange({})) == StructureChange({}).then(a) == a


def test_then_refuses_what_is_already_gone():
    with pytest.raises(StructureError, match="index 2 of 'a' along dimension 0, but the first one leaves only 2"):
        change_of({"a": {0: [0, 3]}}).then(change_of({"a": {0: [2]}}))


def test_slice_keeps_the_order_in_memory():
    change = change_of({"w": {0: [0, 2], 1: [1, 2, 3]}})
    plain = torch.rand(4, 5, 3, 3)
    last = plain.to(memory_format=torch.channels_last)
    assert change.slice("w", plain).is_contiguous()
    kept = change.slice("w", last)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    assert not kept.is_contiguous()
    assert torch.equal(kept, slice_slowly(plain, {0: [0, 2], 1: [1, 2, 3]}))
    # 1x1 kernels are ambiguous to torch; the strides must still be those of a fresh channels_last tensor.
    pointwise = torch.rand(4, 5, 1, 1).to(memory_format=torch.channels_last)
    assert change.slice("w", pointwise).stride() == (3, 1, 3, 3)
    # A view into something larger does not drag the rest along.
    assert change.slice("w", torch.rand(9, 9, 3, 3)[:4, :5]).untyped_storage().nbytes() == 2 * 3 * 9 * 4
    assert change.slice("other", plain) is plain
    with pytest.raises(StructureError, match="no dimension 1"):
        change.slice("w", torch.rand(4))
    with pytest.raises(StructureError, match="index 2 of dimension 0 is out of range"):
        change.slice("w", torch.rand(2, 5))


# ------------------------------------------------------------------------------- a network with channels to be removed


class Net(nn.Module):
    def __init__(self, widths=(5, 4), *, norm=True):
        super().__init__()
        first, second = widths
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(first) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(second) if norm else nn.Identity()
        self.head = nn.Linear(second * 4, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
        x = nn.functional.max_pool2d(self.bn2(self.conv2(x)).relu(), 2)
        return self.head(x.flatten(1))

    def removal(self, kept1, kept2) -> dict[str, dict[int, list[int]]]:
        """The plain change that leaves these channels."""
        plain: dict[str, dict[int, list[int]]] = {"conv1.weight": {0: kept1}, "conv2.weight": {0: kept2, 1: kept1}}
        for name in dict([*self.named_parameters(), *self.named_buffers()]):
            layer, _, tensor = name.rpartition(".")
            is_norm = layer in {"bn1", "bn2"} and tensor != "num_batches_tracked"
            if is_norm or name in {"conv1.bias", "conv2.bias"}:
                plain[name] = {0: kept1 if layer.endswith("1") else kept2}
        plain["head.weight"] = {1: [4 * channel + i for channel in kept2 for i in range(4)]}
        return plain

    @torch.no_grad()
    def kill(self, kept1, kept2):
        """Make the other channels dead: they give zero, and no gradient revives them."""
        for number, kept in (("1", kept1), ("2", kept2)):
            for name, tensor in self.named_parameters():
                if name.startswith((f"conv{number}.", f"bn{number}.")):
                    tensor[[i for i in range(len(tensor)) if i not in kept]] = 0


def make_net(seed: int, widths=(5, 4), *, norm=True, channels_last=False) -> Net:
    generator = torch.Generator().manual_seed(seed)
    net = Net(widths, norm=norm).double()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4
    return net.to(memory_format=torch.channels_last) if channels_last else net


def train(net, optimizer, seed, steps, after_step=lambda: None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (6,), generator=generator)
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()
    return net


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
}


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "bias"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_the_dead_channels_were_still_there(kind, channels_last, norm):
    kept1, kept2 = [0, 3, 4], [1, 2]
    masked = make_net(1, norm=norm, channels_last=channels_last)
    masked_optimizer = OPTIMIZERS[kind](masked.parameters())
    train(masked, masked_optimizer, seed=2, steps=3)
    masked.kill(kept1, kept2)
    sliced = copy.deepcopy(masked)
    sliced_optimizer = OPTIMIZERS[kind](sliced.parameters())
    # torch shares state tensors with the dict that it loads.
    sliced_optimizer.load_state_dict(copy.deepcopy(masked_optimizer.state_dict()))
    identities = [id(p) for p in sliced.parameters()]
    plain = sliced.removal(kept1, kept2)

    apply_structure_change(change_of(plain), model=sliced, optimizer=sliced_optimizer)

    assert [id(p) for p in sliced.parameters()] == identities
    assert (sliced.conv2.in_channels, sliced.conv2.out_channels, sliced.head.in_features) == (3, 2, 8)
    train(masked, masked_optimizer, seed=3, steps=4, after_step=lambda: masked.kill(kept1, kept2))
    train(sliced, sliced_optimizer, seed=3, steps=4)
    for name, expected in apply_slowly(masked.state_dict(), plain).items():
        torch.testing.assert_close(sliced.state_dict()[name], expected, rtol=1e-12, atol=1e-12, msg=name)
        if channels_last and expected.dim() == 4:
            assert sliced.state_dict()[name].is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(sliced.eval()(x), masked.eval()(x), rtol=1e-12, atol=1e-12)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_model_optimizer_and_copies_equal_the_slow_twin(data):
    widths = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    norm, channels_last = data.draw(st.booleans()), data.draw(st.booleans())
    kept1, kept2 = (sorted(data.draw(st.sets(st.integers(0, w - 1), min_size=1))) for w in widths)
    net = make_net(4, widths, norm=norm, channels_last=channels_last)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, seed=5, steps=1)
    twin, average = copy.deepcopy(net), {name: p.detach() * 2 for name, p in net.named_parameters()}
    plain = net.removal(kept1, kept2)
    expected = apply_slowly(net.state_dict(), plain)
    expected_average = apply_slowly(average, plain)
    expected_state = {
        name: apply_slowly({slot: optimizer.state[p][slot] for slot in ("exp_avg", "exp_avg_sq")},
                           {slot: plain.get(name, {}) for slot in ("exp_avg", "exp_avg_sq")})
        for name, p in net.named_parameters()
    }  # fmt: skip

    apply_structure_change(change_of(plain), model=net, optimizer=optimizer, copies=[twin, average])

    for name, value in expected.items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(twin.state_dict()[name], value)
    assert set(average) == set(expected_average)
    assert all(torch.equal(average[name], value) for name, value in expected_average.items())
    for name, p in net.named_parameters():
        assert float(optimizer.state[p]["step"]) == 1
        assert all(torch.equal(optimizer.state[p][slot], value) for slot, value in expected_state[name].items())
    assert read_structure(twin) == read_structure(net)
    train(net, optimizer, seed=6, steps=1)


def test_hooks_and_schedulers_keep_the_parameters():
    net, seen = make_net(7), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    net.conv1.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    train(net, optimizer, seed=1, steps=1)
    apply_structure_change(change_of(net.removal([0, 1], [0])), model=net, optimizer=optimizer)
    train(net, optimizer, seed=1, steps=1)
    scheduler.step()
    assert seen == [(5, 1, 3, 3), (2, 1, 3, 3)]
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_last_loss_may_still_be_alive(dtype):
    layer, seen = nn.Linear(3, 4, bias=False).to(dtype), []
    layer.weight.register_hook(lambda grad: seen.append(tuple(grad.shape)))
    loss = layer(torch.ones(2, 3, dtype=dtype)).sum()
    loss.backward()
    layer.weight.grad = None
    apply_structure_change(change_of({"weight": {0: [0, 2]}}), model=layer)
    again = layer(torch.ones(2, 3, dtype=dtype)).sum()
    again.backward()
    assert seen == [(4, 3), (2, 3)]
    assert layer.weight.dtype is dtype
    assert torch.equal(layer.weight.grad, torch.full((2, 3), 2.0, dtype=dtype))
    del loss


def test_several_optimizers_and_holders_of_copies():
    class Holder:
        def __init__(self, net):
            self.tensors = {name: p.detach().clone() for name, p in net.named_parameters()}

        def apply_structure_change(self, change):
            apply_structure_change(change, copies=[self.tensors])

    net = make_net(8)
    convs = torch.optim.SGD([net.conv1.weight, net.conv2.weight], lr=0.1, momentum=0.9)
    rest = torch.optim.Adam([p for n, p in net.named_parameters() if not n.startswith("conv")])
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in (convs, rest):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    holder = Holder(net)
    assert isinstance(holder, HoldsCopies)
    # Given twice it is still sliced once.
    apply_structure_change(
        change_of(net.removal([1, 2], [0, 3])), model=net, optimizer=[convs, rest], copies=[holder, holder]
    )
    assert convs.state[net.conv2.weight]["momentum_buffer"].shape == (2, 2, 3, 3)
    assert rest.state[net.head.weight]["exp_avg"].shape == (3, 8)
    assert all(torch.equal(holder.tensors[name], p) for name, p in net.named_parameters())


# ----------------------------------------------------------------------------------------------- refusals are atomic


def snapshot(*things):
    """Every bit of every tensor, with identity, and every plain attribute."""
    result = []
    for thing in things:
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules():
                plain = {k: v for k, v in vars(module).items() if isinstance(v, int | tuple)}
                result.append((name, plain))
            tensors = dict([*thing.named_parameters(), *thing.named_buffers()])
        elif isinstance(thing, torch.optim.Optimizer):
            tensors = {
                f"{i}.{slot}": value
                for i, state in enumerate(thing.state.values())
                for slot, value in state.items()
                if isinstance(value, Tensor)
            }
        else:
            tensors = {name: value for name, value in thing.items() if isinstance(value, Tensor)}
        result.extend(
            (name, id(t), t.data_ptr(), tuple(t.shape), t.stride(), t.detach().clone().numpy().tobytes())
            for name, t in tensors.items()
        )
    return result


def without(plain, *names):
    return {name: dims for name, dims in plain.items() if name not in names}


REFUSALS = {
    "unknown name": (lambda s: s.plain.update({"nope": {0: [0]}}), "has no tensor 'nope'"),
    "no such dimension": (lambda s: s.plain.update({"head.bias": {1: [0]}}), "no dimension 1"),
    "index out of range": (lambda s: s.plain.update({"conv1.weight": {0: [0, 9]}}), "out of range"),
    "bias forgotten": (lambda s: s.plain.update({"head.weight": {0: [0, 1], 1: [0]}}), "slice both"),
    "norm forgotten": (lambda s: s.plain.pop("bn1.running_var"), "'bn1' .BatchNorm2d.*unequal lengths"),
    "gradients": (lambda s: s.net.conv1.weight.sum().backward(), "zero_grad"),
    "state of unknown shape": (lambda s: s.state().update(other=torch.ones(2)), "'other' of 'conv1.weight' has shape"),
    "state of unknown kind": (lambda s: s.state().update(other=[torch.ones(2)]), "'other' of 'conv1.weight' is a list"),
    "factored state": (lambda s: s.state().update(row_var=torch.ones(5, 1, 3, 3)), "'row_var'"),
    "other optimizer": (lambda s: s.use(torch.optim.SGD(make_net(3).parameters())), "no parameter of the model"),
    "copy of another net": (lambda s: s.copies.append(nn.Linear(2, 2)), "copy 2 .Linear. has no tensor"),
    "copy that fell behind": (lambda s: s.copies.append(make_net(1, (6, 4))), "copy 2 .Net.: .*followed every change"),
    "dict that fell behind": (lambda s: s.copies[1].update({"conv1.weight": torch.ones(6, 1, 3, 3)}), "copy 1 .dict"),
    "dict with other names": (lambda s: s.copies.append({"module.conv1.weight": torch.ones(5)}), "holds none"),
    "dict with a number": (lambda s: s.copies[1].update({"conv1.weight": 1}), "no tensor but a int"),
    "copy with gradients": (lambda s: s.copies[0].conv1.weight.sum().backward(), "copy 0 .Net.*gradient"),
    "unknown kind of copy": (lambda s: s.copies.append(3), "copy 2 .int. is no module"),
    "holder that refuses": (lambda s: s.copies.append(Refuses()), "not me"),
    "data parallel": (lambda s: s.wrap(), "pass its .module"),
    "optimizer alone": (lambda s: s.forget_model(), "pass model="),
}


class Refuses:
    def apply_structure_change(self, change):
        raise StructureError("not me")


class Scene:
    def __init__(self):
        self.net = self.model = make_net(9)
        self.optimizer = torch.optim.Adam(self.net.parameters())
        train(self.net, self.optimizer, seed=1, steps=1)
        self.copies = [copy.deepcopy(self.net), {n: p.detach().clone() for n, p in self.net.named_parameters()}]
        self.plain = self.net.removal([0, 2], [1, 3])

    def state(self):
        return self.optimizer.state[self.net.conv1.weight]

    def use(self, optimizer):
        self.optimizer = optimizer

    def wrap(self):
        self.model = nn.DataParallel(self.net)

    def forget_model(self):
        self.model = None

    def everything(self):
        return snapshot(self.net, self.optimizer, *(c for c in self.copies if isinstance(c, nn.Module | dict)))


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_changes_nothing(case):
    spoil, message = REFUSALS[case]
    scene = Scene()
    spoil(scene)
    before = scene.everything()
    with pytest.raises(StructureError, match=message):
        apply_structure_change(
            change_of(scene.plain), model=scene.model, optimizer=scene.optimizer, copies=scene.copies
        )
    assert scene.everything() == before


def test_the_snapshot_sees_a_change():
    scene = Scene()
    before = scene.everything()
    apply_structure_change(change_of(scene.plain), model=scene.model, optimizer=scene.optimizer, copies=scene.copies)
    after = scene.everything()
    assert sum(a != b for a, b in zip(before, after, strict=True)) > 30


def test_real_factored_and_flat_optimizers_are_refused():
    net = make_net(2)
    for optimizer in (torch.optim.Adafactor(net.parameters()), torch.optim.LBFGS(net.parameters(), max_iter=2)):
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64)

        def closure(optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad(set_to_none=True)
        before = snapshot(net, optimizer)
        with pytest.raises(StructureError, match=r"row_var|col_var|LBFGS"):
            apply_structure_change(change_of(net.removal([0], [0])), model=net, optimizer=optimizer)
        assert snapshot(net, optimizer) == before


# ------------------------------------------------------------------------------------------------ kinds of layers


def apply_plain(model, plain, **further):
    apply_structure_change(change_of(plain), model=model, **further)
    return model


def test_depthwise_and_grouped_convolutions():
    depthwise = apply_plain(nn.Conv2d(6, 12, 3, groups=6), {"weight": {0: [2, 3, 10, 11]}, "bias": {0: [2, 3, 10, 11]}})
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (2, 2, 4)
    assert depthwise(torch.rand(1, 2, 5, 5)).shape == (1, 4, 3, 3)
    grouped = apply_plain(nn.Conv2d(8, 4, 1, groups=2, bias=False), {"weight": {0: [1, 2], 1: [0, 3]}})
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (2, 4, 2)
    x, weight = torch.rand(1, 4, 2, 2), grouped.weight[:, :, 0, 0]
    expected = torch.cat([torch.einsum("oi,bihw->bohw", weight[g : g + 1], x[:, 2 * g : 2 * g + 2]) for g in (0, 1)], 1)
    torch.testing.assert_close(grouped(x), expected)
    conv = nn.Conv2d(6, 12, 3, groups=6, bias=False)
    with pytest.raises(StructureError, match=r"6 groups would keep \[1, 2\] channels"):
        apply_plain(conv, {"weight": {0: [2, 4, 5]}})
    assert conv.weight.shape == (12, 1, 3, 3)


def test_transposed_convolution():
    full = nn.ConvTranspose2d(4, 6, 2, groups=2)
    conv = apply_plain(copy.deepcopy(full), {"weight": {0: [2, 3], 1: [0, 2]}, "bias": {0: [3, 5]}})
    assert (conv.groups, conv.in_channels, conv.out_channels) == (1, 2, 2)
    x = torch.rand(1, 2, 3, 3)
    expected = full(torch.cat([torch.zeros_like(x), x], 1))[:, [3, 5]]
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("layer", "plain", "attributes"),
    [
        (nn.GroupNorm(2, 6), {"weight": {0: [0, 2, 3, 5]}, "bias": {0: [0, 2, 3, 5]}}, {"num_groups": 2}),
        (nn.GroupNorm(3, 6), {"weight": {0: [0, 1]}, "bias": {0: [0, 1]}}, {"num_groups": 1, "num_channels": 2}),
        (nn.LayerNorm([4, 3]), {"weight": {1: [0, 2]}, "bias": {1: [0, 2]}}, {"normalized_shape": (4, 2)}),
        (nn.RMSNorm(5), {"weight": {0: [0, 4]}}, {"normalized_shape": (2,)}),
        (nn.Embedding(7, 4), {"weight": {0: [0, 6], 1: [1]}}, {"num_embeddings": 2, "embedding_dim": 1}),
        (nn.Bilinear(3, 4, 5), {"weight": {1: [0], 2: [0, 1]}}, {"in1_features": 1, "in2_features": 2}),
        (nn.PReLU(4), {"weight": {0: [1, 3]}}, {"num_parameters": 2}),
        (nn.BatchNorm1d(3, affine=False), {"running_mean": {0: [1]}, "running_var": {0: [1]}}, {"num_features": 1}),
        (nn.InstanceNorm2d(3, affine=True), {"weight": {0: [1]}, "bias": {0: [1]}}, {"num_features": 1}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_attributes_follow(layer, plain, attributes):
    apply_plain(layer, plain)
    assert {name: getattr(layer, name) for name in attributes} == attributes


class OldStyleWeightNorm(nn.Linear):
    """As torch.nn.utils.weight_norm (deprecated) leaves a layer: the weight is a plain attribute."""

    def __init__(self):
        super().__init__(3, 4)
        self.weight_v = nn.Parameter(self.weight.detach())
        del self.weight
        self.weight = self.weight_v * 1


class Sharded(Tensor):
    device_mesh = "as a DTensor has one"


class OnRanks(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 2).as_subclass(Sharded))


@pytest.mark.parametrize(
    ("layer", "plain", "message"),
    [
        (nn.LSTM(3, 4), {"weight_ih_l0": {1: [0]}}, "gates or heads"),
        (nn.MultiheadAttention(4, 2), {"in_proj_bias": {0: [0]}}, "gates or heads"),
        (nn.Embedding(4, 2, padding_idx=0), {"weight": {0: [1, 2]}}, "padding_idx"),
        (nn.LayerNorm(4), {"weight": {0: [1, 2]}}, "its bias"),
        (nn.GroupNorm(2, 6), {"weight": {0: [0, 1, 3]}, "bias": {0: [0, 1, 3]}}, "equally wide"),
        (nn.Conv2d(4, 4, 1), {"weight": {0: [1, 2]}}, "its bias would have shape"),
        (nn.PReLU(4), {"nothing": {0: [1]}}, "has no tensor 'nothing'"),
        (OldStyleWeightNorm(), {"weight_v": {0: [1, 2]}}, "its weight is not a parameter"),
        (OnRanks(), {"weight": {0: [1, 2]}}, "sharded over ranks"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_cannot_follow_refuse(layer, plain, message):
    before = snapshot(layer)
    with pytest.raises(StructureError, match=message):
        apply_plain(layer, plain)
    assert snapshot(layer) == before


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight


def test_tied_tensors_are_sliced_once_with_one_or_two_names():
    for plain in ({"out.weight": {1: [0, 2]}}, {"out.weight": {1: [0, 2]}, "embed.weight": {1: [0, 2]}}):
        model = Tied()
        average = model.state_dict()
        old = model.embed.weight.detach().clone()
        apply_plain(model, plain, copies=[average])
        assert model.out.weight is model.embed.weight
        assert torch.equal(model.out.weight, old[:, [0, 2]])
        assert (model.embed.embedding_dim, model.out.in_features) == (2, 2)
        assert average["embed.weight"] is average["out.weight"]
        assert average["embed.weight"].shape == (6, 2)
    with pytest.raises(StructureError, match=r"'embed.weight' and 'out.weight' are the same tensor"):
        apply_plain(Tied(), {"out.weight": {1: [0, 2]}, "embed.weight": {1: [0, 1]}})


def test_tensors_that_share_memory_otherwise_are_refused():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight.data = model[0].weight.data.t()
    with pytest.raises(StructureError, match="share memory"):
        apply_plain(model, {"0.weight": {0: [1]}})
    flat = torch.rand(18)
    model[0].weight.data, model[1].weight.data = flat[:9].view(3, 3), flat[9:].view(3, 3)
    apply_plain(model, {"0.weight": {0: [1]}})
    assert torch.equal(model[0].weight[0], flat[3:6])


def test_own_layers_with_more_tensors_per_channel_and_parametrizations():
    class Quantised(nn.Conv2d):
        def __init__(self, *args):
            super().__init__(*args)
            self.bits = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 8.0))

    left = {0: [0, 3]}
    layer = apply_plain(Quantised(2, 5, 3), {"weight": left, "bias": left, "bits": left})
    assert layer.out_channels == 2
    assert layer.bits.shape == (2, 1, 1, 1)

    names = ("parametrizations.weight.original0", "parametrizations.weight.original1", "bias")
    normed = weight_norm(nn.Conv2d(2, 4, 3, groups=2))
    expected = normed.weight.detach()[:2]
    apply_plain(normed, {name: {0: [0, 1]} for name in names})
    assert (normed.out_channels, normed.groups, normed.in_channels) == (2, 1, 1)
    assert torch.equal(normed.weight, expected)
    assert parametrize.is_parametrized(normed)

    for layer, plain, message in (
        (weight_norm(nn.Conv2d(2, 4, 3)), {name: {0: [0, 1, 3]} for name in names[1:]}, "unequal numbers of rows"),
        (weight_norm(nn.Conv2d(2, 4, 3)), {name: {0: [0, 1, 3]} for name in names[:2]}, "slice both"),
        (spectral_norm(nn.Linear(3, 4)), {"parametrizations.weight.original": {1: [0]}}, "does not work"),
    ):
        before = snapshot(layer)
        with pytest.raises(StructureError, match=message):
            apply_plain(layer, plain)
        assert snapshot(layer) == before


# ----------------------------------------------------------------------------------------------------- Structure


def everything_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6), nn.GroupNorm(3, 12),
        nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5),
    )  # fmt: skip


def test_a_structure_is_read_and_made_again():
    model = everything_net().to(memory_format=torch.channels_last)
    full = read_structure(model)
    channels = {0: [0, 1, 2, 3]}
    apply_plain(
        model,
        {
            "0.weight": {0: [1, 2]}, "1.weight": {0: [1, 2]}, "1.bias": {0: [1, 2]}, "1.running_mean": {0: [1, 2]},
            "1.running_var": {0: [1, 2]}, "2.weight": {0: [2, 3, 4, 5]}, "2.bias": {0: [2, 3, 4, 5]},
            "3.weight": channels, "3.bias": channels, "5.weight": {0: [0, 4], 1: [0, 1, 2, 3]}, "5.bias": {0: [0, 4]},
            "6.weight": {0: [0, 4]}, "6.bias": {0: [0, 4]},
        },
    )  # fmt: skip
    structure = read_structure(model)
    assert structure.groups == {"2": 2}
    assert full.groups == {"2": 6, "3": 3}
    stored = json.loads(json.dumps(structure.to_state()))
    assert Structure.from_state(stored) == structure
    assert Structure.from_state(stored).digest() == structure.digest() != full.digest()

    fresh = everything_net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(fresh.parameters())
    apply_structure_(fresh, structure)
    assert read_structure(fresh) == structure
    fresh.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(3, 2, 5, 5)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    assert fresh[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in fresh.parameters()}
    apply_structure_(fresh, structure)
    with torch.device("meta"):
        abstract = everything_net()
    apply_structure_(abstract, structure)
    assert read_structure(abstract) == structure


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["shapes"].pop("5.bias"), "does not say what shape '5.bias'"),
        (lambda s: s["shapes"].update(more=[1]), "has no 'more'"),
        (lambda s: s["shapes"].update({"5.bias": [6]}), r"'5.bias' has shape \(5,\) and cannot shrink to \(6,\)"),
        (lambda s: s["shapes"].update({"5.bias": [5, 1]}), "cannot shrink"),
        (lambda s: s["shapes"].update({"5.bias": [0]}), "zero width"),
        (lambda s: s["shapes"].update({"5.bias": [4]}), "slice both"),
        (lambda s: s["groups"].update({"3": 2}), "'3' has 3 groups and should have 2"),
        (lambda s: s["groups"].update({"5": 2}), "'5' has 1 groups and should have 2"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(edit, message):
    model = everything_net()
    state = read_structure(model).to_state()
    edit(state)
    before = snapshot(model)
    with pytest.raises(StructureError, match=message):
        apply_structure_(model, Structure.from_state(state))
    assert snapshot(model) == before


@pytest.mark.parametrize("state", [{}, {"shapes": 3, "groups": {}}, {"shapes": {"a": ["x"]}, "groups": {}}])
def test_a_stored_structure_is_checked(state):
    with pytest.raises(FormatError, match="not the state of a Structure"):
        Structure.from_state(state)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_strides_do_not_depend_on_how_often_a_tensor_was_sliced(order):
    """With one channel left any stride would do, and kernels that go by strides would sum in another order."""
    tensor = torch.arange(8 * 4 * 9.0).view(8, 4, 3, 3).to(memory_format=order)
    rows, channel = torch.tensor([0, 2, 5]), torch.tensor([1])
    at_once = StructureChange({"weight": ((0, rows), (1, channel))}).slice("weight", tensor)
    one_by_one = tensor
    for dim, index in ((1, channel), (0, torch.arange(7)), (0, rows)):
        one_by_one = StructureChange({"weight": ((dim, index),)}).slice("weight", one_by_one)
    assert torch.equal(at_once, one_by_one)
    assert at_once.stride() == one_by_one.stride() == torch.empty(3, 1, 3, 3, memory_format=order).stride()
