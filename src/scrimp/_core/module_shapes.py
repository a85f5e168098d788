"""The attributes of torch's modules that repeat the shapes of their tensors (``out_channels``, ``groups``, ...)."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from scrimp._core.stand_ins import ConstantOutput
from scrimp.errors import StructureError

Shapes = Mapping[str, tuple[int, ...]]

# Their tensors hold several gates or heads in one dimension; which slices make sense is not for us to guess.
_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

# Where modules that are not torch's own keep a width that they cut tensors by.
SIZE_ATTRIBUTES = (
    "num_heads", "n_heads", "n_head", "heads", "num_attention_heads", "num_groups", "nf", "split_size",
)  # fmt: skip


def size_attributes(module: nn.Module) -> dict[str, int]:
    """The widths that a module keeps as attributes under a name known for that; none for torch's own modules."""
    if isinstance(module, ConstantOutput):
        return {"num_channels": module.num_channels}
    if type(module).__module__.startswith("torch.nn."):
        return {}
    own = vars(module)
    return {name: own[name] for name in SIZE_ATTRIBUTES if type(own.get(name)) is int}


def num_groups(module: nn.Module) -> int:
    """Into how many groups the first dimension of ``weight`` falls: of a convolution or a GroupNorm; else 1."""
    if isinstance(module, _ConvNd):
        return module.groups
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


def num_groups_left(module: nn.Module, kept: Tensor | None) -> int:
    """How many groups there are after ``kept`` of the first dimension of ``weight`` survives (``None``: all).

    A group disappears with its last channel; the others must stay equally wide.
    """
    groups = num_groups(module)
    if kept is None or groups == 1:
        return groups
    if isinstance(module, _ConvNd):
        channels = module.in_channels if module.transposed else module.out_channels
    else:
        assert isinstance(module, nn.GroupNorm)
        channels = module.num_channels
    width = channels // groups
    left = (kept // width).bincount(minlength=groups)
    left = left[left > 0]
    if bool((left != left[0]).any()):
        raise StructureError(f"its {groups} groups would keep {left.tolist()} channels; they must stay equally wide")
    return len(left)


def shape_attributes(module: nn.Module, shapes: Shapes, groups: int) -> dict[str, object]:
    """The attributes that ``module`` must have when its own tensors have these ``shapes``; ``{}`` for unknown modules.

    Raises: StructureError - the shapes contradict each other, or the module is one that cannot be sliced.
    """
    if isinstance(module, _OPAQUE):
        raise StructureError("it keeps gates or heads side by side in one dimension, so slicing it is not supported")
    if isinstance(module, _ConvNd):
        return _conv_attributes(module, shapes, groups)
    if isinstance(module, _NormBase):
        return {"num_features": _common_length(shapes, "weight", "bias", "running_mean", "running_var")}
    if isinstance(module, nn.GroupNorm):
        channels = _common_length(shapes, "weight", "bias")
        return {"num_channels": channels, "num_groups": groups}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        weight = _weight(shapes)
        if shapes.get("bias", weight) != weight:
            raise StructureError(f"its weight would have shape {weight} but its bias {shapes['bias']}")
        return {"normalized_shape": weight}
    if isinstance(module, nn.Linear):
        outputs, inputs = _weight(shapes)
        _expect_length(shapes, "bias", outputs)
        return {"out_features": outputs, "in_features": inputs}
    if isinstance(module, nn.Bilinear):
        outputs, inputs, inputs_2 = _weight(shapes)
        _expect_length(shapes, "bias", outputs)
        return {"out_features": outputs, "in1_features": inputs, "in2_features": inputs_2}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        rows, width = _weight(shapes)
        if rows != module.num_embeddings and module.padding_idx is not None:
            raise StructureError("it has a padding_idx, which would point to another row")
        return {"num_embeddings": rows, "embedding_dim": width}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": _weight(shapes)[0]}
    return {}


def _conv_attributes(module: _ConvNd, shapes: Shapes, groups: int) -> dict[str, object]:
    first, second, *_ = _weight(shapes)
    if first % groups:
        raise StructureError(f"the first dimension of its weight would be {first}, which {groups} groups do not divide")
    outputs, inputs = (second * groups, first) if module.transposed else (first, second * groups)
    _expect_length(shapes, "bias", outputs)
    return {"out_channels": outputs, "in_channels": inputs, "groups": groups}


def _weight(shapes: Shapes) -> tuple[int, ...]:
    if "weight" not in shapes:
        raise StructureError(
            f"its weight is not a parameter (it has {sorted(shapes)}); the old torch.nn.utils.weight_norm and "
            "spectral_norm do that: use those of torch.nn.utils.parametrizations"
        )
    return shapes["weight"]


def _common_length(shapes: Shapes, *names: str) -> int:
    lengths = {name: shapes[name] for name in names if name in shapes}
    if len(set(lengths.values())) != 1:
        raise StructureError(f"its tensors would have unequal lengths: {lengths}")
    return next(iter(lengths.values()))[0]


def _expect_length(shapes: Shapes, name: str, length: int) -> None:
    if shapes.get(name, (length,)) != (length,):
        raise StructureError(f"its {name} would have shape {shapes[name]} beside {length} outputs; slice both")
