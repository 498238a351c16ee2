"""Masks: pruned weights that stay zero, whatever trains, copies, stores or lowers the module.

The weight itself stays a stored parameter, and is zero where its mask is False. A product weight · mask in the graph
would hold too, but then the weight is computed, and batch norm folding, quantization and channel pruning, which need
stored weights, would have to leave the layer alone. So zeros are kept zero from both sides:

- the gradient is zero where the mask is, so momentum stays zero, weight decay and Adam have nothing to move, and
  gradient clipping is not disturbed;
- what else can write (an optimizer with the state of another model, an average of weights, a loaded checkpoint) is
  undone before every forward pass, every copy (capture, export and quantize copy first) and every state_dict.

A mask is a bool buffer beside its weight (`conv.weight` -> `conv.weight_mask`), so it is part of the state_dict.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lighten.errors import ConfigError
from lighten.graph.capture import CapturedModule, capture, get_tensor, set_tensor_

_META = "lighten_masks"  # module.meta is what fx copies along: parameter name -> buffer name


class MaskedModule(CapturedModule):
    """A captured module some of whose weights are held at zero. Made by `mask_weights`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run, with the masks enforced first."""
        # While torch traces, parameters are stand-ins without values; what is traced was enforced by the copy before.
        if not torch.compiler.is_compiling():
            self.hold_()
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskedModule":
        self.hold_()
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, MaskedModule)
        copied.hold_()
        return copied

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See nn.Module.state_dict; pruned weights are zero in it."""
        self.hold_()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See nn.Module.load_state_dict; masks are part of the state, and what they prune is zero afterwards."""
        result = super().load_state_dict(*args, **kwargs)
        self.hold_()
        return result

    def hold_(self) -> None:
        """Set to zero what the masks prune, and keep its gradient zero from now on."""
        for name, mask in masks(self).items():
            weight = get_tensor(self, name)
            if mask.shape != weight.shape:  # channels were taken out; what is left of the pruned weights is still zero
                mask = weight.detach() != 0
                self._set_mask(name, mask)
            # .data: a backward pass that is under way must not take zeros written over zeros for a change.
            weight.data.masked_fill_(~mask, 0)
            if weight.requires_grad:
                _mask_gradient_(weight, mask)

    def _set_mask(self, name: str, mask: Tensor) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = self.get_submodule(owner_name)
        buffer = self.meta[_META].get(name, "").rpartition(".")[2] or _free_name(owner, f"{leaf}_mask")
        owner.register_buffer(buffer, mask)
        self.meta[_META][name] = f"{owner_name}.{buffer}".lstrip(".")


def masks(module: nn.Module) -> dict[str, Tensor]:
    """The masks of module by the names of their weights: bool, True = keep; {} where nothing is masked.

    A mask whose weight is gone (quantization stores codes in its place) is left out.
    """
    if not isinstance(module, MaskedModule):
        return {}
    names: dict[str, str] = module.meta[_META]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {name: get_tensor(module, buffer) for name, buffer in names.items() if name in parameters}


def is_mask(module: nn.Module, name: str) -> bool:
    """Whether the buffer of that name is a mask, with or without its weight."""
    return isinstance(module, CapturedModule) and name in module.meta.get(_META, {}).values()


def mask_weights(captured: CapturedModule, new: dict[str, Tensor]) -> MaskedModule:
    """captured with the weights of these names held at zero where their mask is False; it shares captured's tensors.

    new: by parameter name, bool tensors of the parameter's shape. A mask that is there already is replaced.
    """
    if isinstance(captured, MaskedModule):
        module = captured
    else:
        module = MaskedModule(captured, captured.graph)
        module.plan, module.batch_is_dynamic = captured.plan, captured.batch_is_dynamic
        module.meta = {**captured.meta, _META: {}}
    for name, mask in new.items():
        assert mask.dtype == torch.bool
        assert mask.shape == get_tensor(module, name).shape
        module._set_mask(name, mask.clone())
    module.hold_()
    return module


def make_permanent(model: nn.Module) -> CapturedModule:
    """A copy of model without masks: the zeros are ordinary weights from now on, which training may change.

    Raises:
        ConfigError: model has no masks.
    """
    if not isinstance(model, MaskedModule):
        raise ConfigError(
            f"{type(model).__name__} has no masks to make permanent. They come from prune(…, granularity='element')."
        )
    copied = capture(model, ())  # a copy: what is captured already is not traced again
    assert isinstance(copied, MaskedModule)
    for name in masks(copied):
        set_tensor_(copied, name, get_tensor(copied, name))  # a new parameter, whose gradient nothing masks
    for buffer in copied.meta.pop(_META).values():
        owner, _, leaf = buffer.rpartition(".")
        delattr(copied.get_submodule(owner), leaf)
    plain = CapturedModule(copied, copied.graph)
    plain.plan, plain.batch_is_dynamic, plain.meta = copied.plan, copied.batch_is_dynamic, copied.meta
    return plain


def _free_name(owner: nn.Module, name: str) -> str:
    while hasattr(owner, name):
        name += "_"
    return name


def _mask_gradient_(weight: Tensor, mask: Tensor) -> None:
    """Zero the gradient of weight where mask is False, from the next backward pass on."""
    cell: list[Tensor] | None = getattr(weight, "_lighten_mask", None)
    if cell is not None:
        cell[0] = mask
        return
    cell = [mask]  # what the hook reads can be replaced, and does not keep the weight alive
    # A copied parameter comes without this attribute, as it comes without the hook.
    weight._lighten_mask = cell  # type: ignore[attr-defined]
    weight.register_hook(lambda gradient: gradient.masked_fill(~cell[0], 0))
