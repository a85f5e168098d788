"""From a name or ``MODULE:FUNCTION`` to a model that is known to fit the data."""

import contextlib
import dataclasses
import importlib
import inspect
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scrimp._core.names import nearest
from scrimp._core.rng import capture_global_rng, restore_global_rng
from scrimp.errors import ConfigError
from scrimp.train.models.convnets import airbench, resnet9, small_cnn
from scrimp.train.models.gpt import GPT
from scrimp.train.models.resnet import resnet18, resnet20, resnet50
from scrimp.train.models.vit import ViT

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    "small-cnn": small_cnn,
    "resnet9": resnet9,
    "airbench": airbench,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "gpt": GPT,
    "vit": ViT,
}
"""The models that can be asked for by name."""

ModelSetting = int | float | bool | str
"""What a model argument can be."""

_NUM_CHECKED = 2  # samples in the check; not one, which a model could squeeze away


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the data says about a model's shapes.

    Images: ``num_classes``, ``in_channels`` and ``image_size`` (a side in pixels, or (height, width)
    where they differ). Text: ``vocab_size`` and ``context_length`` in tokens. What does not apply is None.
    """

    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | tuple[int, int] | None = None
    vocab_size: int | None = None
    context_length: int | None = None

    @classmethod
    def of_images(cls, num_classes: int, image_shape: tuple[int, int, int]) -> "ModelFacts":
        """The facts of labelled images of shape (channels, height, width)."""
        channels, height, width = image_shape
        size = height if height == width else (height, width)
        return cls(num_classes=num_classes, in_channels=channels, image_size=size)

    def example_input(self, num_samples: int) -> Tensor:
        """A batch of zeros of the data's shape: float32 images or int64 tokens."""
        if self.vocab_size is not None:
            return torch.zeros(num_samples, self.context_length or 1, dtype=torch.int64)
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else (self.image_size or (1, 1))
        return torch.zeros(num_samples, self.in_channels or 1, *size)

    def output_shape(self, num_samples: int) -> tuple[int, ...]:
        """The shape of the logits for :meth:`example_input`."""
        if self.vocab_size is not None:
            return (num_samples, self.context_length or 1, self.vocab_size)
        return (num_samples, self.num_classes or 1)


def build_model(spec: str, model_args: Mapping[str, ModelSetting], facts: ModelFacts) -> nn.Module:
    """Make a model on the CPU and check once that it fits the data.

    Args:
        spec: a name in :data:`MODELS`, or ``MODULE:FUNCTION`` for the user's own function or class; the module must be
            importable (the command line puts the current directory on the path).
        model_args: arguments for the function, by name. A fact of the data cannot be set here.
        facts: what the data says; the function gets those facts that its signature names.

    Raises:
        ConfigError: no such model, module or function; a wrong argument; the function failed or returned something else
            than a module; the logits have another shape than the data needs.

    Cost: that of ``check_model``. Weights are drawn from torch's global generator, so that a seed decides them; the
    check draws nothing.
    """
    function = _import_function(spec) if ":" in spec else _known_function(spec)
    arguments = _arguments(spec, function, model_args, facts)
    try:
        model = function(**arguments)
    except ConfigError as error:
        raise ConfigError(f"model {spec!r}: {error}") from error
    except Exception as error:
        raise ConfigError(f"model {spec!r} could not be made: {_describe(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {spec!r} returned {type(model).__name__}, not a torch.nn.Module; return the module itself."
        )
    check_model(model, facts, name=repr(spec))
    return model


def check_model(model: nn.Module, facts: ModelFacts, *, name: str = "") -> None:
    """Raise ConfigError unless two samples of the data's shape give logits of the shape that the data needs.

    One forward in eval mode and one in training mode, without gradients, on the model's device. Parameters, buffers,
    training mode and the global generators of torch, Python and NumPy are as before, bit for bit. Also refuses a model
    without a trainable parameter.

    Cost: two forwards of two samples; a copy of parameters and buffers for as long.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model {name} has no parameter that can be trained.")
    for is_training, where in ((False, ""), (True, " in training mode")):
        with _left_as_it_was(model), torch.no_grad():
            model.train(is_training)
            _check_forward(model, facts, name, where)


def _check_forward(model: nn.Module, facts: ModelFacts, name: str, where: str) -> None:
    example = facts.example_input(_NUM_CHECKED).to(next(model.parameters()).device)
    expected = facts.output_shape(_NUM_CHECKED)
    try:
        logits = model(example)
    except Exception as error:
        raise ConfigError(
            f"model {name} does not take the data{where}: an input of shape {tuple(example.shape)} "
            f"({str(example.dtype).removeprefix('torch.')}) gave {_describe(error)}; "
            f"logits of shape {expected} are needed."
        ) from error
    if not isinstance(logits, Tensor):
        raise ConfigError(
            f"model {name} gave {type(logits).__name__}{where}, in place of one tensor of shape {expected}."
        )
    if tuple(logits.shape) != expected:
        raise ConfigError(
            f"model {name} does not fit the data{where}: an input of shape {tuple(example.shape)} gave logits of shape "
            f"{tuple(logits.shape)}, but {expected} is needed."
        )


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back parameters, buffers, training mode and the global generators, whatever a forward does to them.

    Lazy tensors keep what the first forward makes of them.
    """
    was_training = {module: module.training for module in model.modules()}
    tensors = [
        (module, name, tensor, tensor.detach().clone())
        for module in was_training
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if not is_lazy(tensor)
    ]
    random_state = capture_global_rng()
    try:
        yield
    finally:
        restore_global_rng(random_state)
        for module, training in was_training.items():
            module.training = training
        for module, name, tensor, before in tensors:
            if getattr(module, name) is not tensor:
                setattr(module, name, tensor)
            # a tensor whose elements share memory can be compared but not written; such a one is never contiguous
            if tensor.is_contiguous() or not torch.equal(tensor, before):
                tensor.detach().copy_(before)


def _known_function(name: str) -> Callable[..., nn.Module]:
    if name in MODELS:
        return MODELS[name]
    raise ConfigError(
        f"no model is called {name!r}{nearest(name, list(MODELS))}; your own is MODULE:FUNCTION, such as "
        f"my_models:make_net."
    )


def _import_function(spec: str) -> Callable[..., object]:
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name.isidentifier() or "/" in module_name or module_name.endswith(".py"):
        wanted = f"{Path(module_name).stem or 'my_models'}:{function_name or 'make_net'}"
        raise ConfigError(
            f"model {spec!r} is not of the form MODULE:FUNCTION with a module's import name; "
            f"write it like {wanted!r}, not as a path."
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"model {spec!r}: there is no module {error.name!r}. It must be installed "
                f"or in the current directory ({Path.cwd()})."
            ) from error
        raise ConfigError(f"model {spec!r}: importing {module_name!r} failed: {_describe(error)}.") from error
    except Exception as error:
        raise ConfigError(f"model {spec!r}: importing {module_name!r} failed: {_describe(error)}.") from error
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
        raise ConfigError(
            f"model {spec!r}: module {module_name!r} has no function {function_name!r}{nearest(function_name, names)}."
        )
    if isinstance(function, nn.Module) or not callable(function):
        raise ConfigError(
            f"model {spec!r}: {function_name!r} is {type(function).__name__}, "
            f"not a function or class that makes a module."
        )
    return typing.cast("Callable[..., object]", function)


def _arguments(
    spec: str, function: Callable[..., object], model_args: Mapping[str, ModelSetting], facts: ModelFacts
) -> dict[str, object]:
    """The facts that the function names, and the user's own arguments, after checking names and types."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"model {spec!r} has no signature that Python can read ({error}); wrap it in a function."
        ) from error
    by_name = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known_facts = {
        field.name: value for field in dataclasses.fields(facts) if (value := getattr(facts, field.name)) is not None
    }
    own = ", ".join(str(p) for name, p in by_name.items() if name not in ModelFacts.__dataclass_fields__) or "none"
    hints = _type_hints(function)
    for name, value in model_args.items():
        if name in known_facts:
            raise ConfigError(
                f"model argument {name}={value!r}: the data sets it (to {known_facts[name]!r}); leave it out."
            )
        if name not in by_name and not takes_any:
            raise ConfigError(f"model {spec!r} takes no argument {name!r}. It takes: {own}.")
        if wanted := _unfit(value, hints.get(name)):
            raise ConfigError(
                f"model argument {name}={value!r} is {type(value).__name__}, but {spec!r} needs {wanted}. "
                f"It takes: {own}."
            )
    arguments: dict[str, object] = {name: value for name, value in known_facts.items() if name in by_name}
    arguments.update((name, float(value) if hints.get(name) is float else value) for name, value in model_args.items())
    missing = [name for name, p in by_name.items() if p.default is p.empty and name not in arguments]
    if missing:
        raise ConfigError(_missing_message(spec, missing, known_facts))
    return arguments


def _missing_message(spec: str, missing: list[str], known_facts: Mapping[str, object]) -> str:
    facts = [name for name in missing if name in ModelFacts.__dataclass_fields__]
    if facts:
        kind, other = ("text", "images") if "vocab_size" in known_facts else ("images", "text")
        return (
            f"model {spec!r} needs {', '.join(facts)}, which {kind} data does not have; choose a model for {kind} "
            f"or give {other} as --data."
        )
    return f"model {spec!r} needs a value for {', '.join(missing)}; give it: --model-args {missing[0]}=VALUE"


def _type_hints(function: Callable[..., object]) -> dict[str, object]:
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(target)
    except Exception:  # annotations of the user that cannot be resolved are theirs to keep
        return {}


_PLAIN_TYPES: Mapping[object, tuple[str, tuple[type, ...]]] = {
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
    str: ("text", (str,)),
}


def _unfit(value: ModelSetting, hint: object) -> str:
    """What a plain annotation wants where the value is not that; any other annotation is not checked."""
    words, allowed = _PLAIN_TYPES.get(hint, ("", (object,)))
    fits = isinstance(value, allowed) and (hint not in (int, float) or not isinstance(value, bool))
    return "" if fits else words


def _describe(error: BaseException) -> str:
    """``TypeError: message (file.py, line 3)``: the innermost line of the code that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    text = str(error).strip().split("\n")[0].rstrip(".")
    place = ""
    if isinstance(error, SyntaxError):
        text, place = error.msg, f" ({Path(error.filename or '?').name}, line {error.lineno})"
    elif frames and "importlib" not in frames[-1].filename:
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {text}{place}"
