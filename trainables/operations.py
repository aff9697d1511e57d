"""Count multiply-adds as torch runs them, and find operations that it does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sftsearch.trainables.plugin_functions import describe_error

if TYPE_CHECKING:
    from collections.abc import Sequence

_PRODUCTS = ("_trilinear", "_cdist_forward", "_pdist_forward", "addbmm", "vdot", "lstm", "gru")
_FAMILIES = ("_fft_", "linalg_", "_linalg_", "mkldnn_", "grid_sampler", "quantized_")
"""Operations of torch with products of numbers that torch's counter does not count."""


class Operations(TorchDispatchMode):
    """Collects the operations that it sees."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note it."""
        self._seen.add(func)
        return func(*args, **(kwargs or {}))

    def uncounted(self) -> list[str]:
        """Return the names of the operations with products that no counter counts."""
        found = set()
        for func in self._seen:
            packet = func.overloadpacket
            namespace, _, name = str(func.name()).partition("::")
            name = name.split(".")[0]
            is_known = namespace in ("aten", "prims", "prim")
            is_product = name in _PRODUCTS or name.startswith(_FAMILIES)
            if packet not in flop_registry and (not is_known or is_product):
                found.add(f"{namespace}.{name}")
        return sorted(found)


def _count_fused(q: torch.Size, k: torch.Size, v: torch.Size, **_: object) -> int:
    """Count two operations a multiply-add of fused attention, which torch does not count."""
    return 2 * q.numel() * k[-2] + 2 * q[:-1].numel() * k[-2] * v[-1]


def _count_matrix_vector(matrix: torch.Size, vector: torch.Size, **_: object) -> int:
    return 2 * matrix.numel()


def _count_added_matrix_vector(
    added: torch.Size, matrix: torch.Size, vector: torch.Size, **_: object
) -> int:
    return 2 * matrix.numel()


def _count_dot(vector: torch.Size, other: torch.Size, **_: object) -> int:
    return 2 * vector.numel()


_COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_fused,
    torch.ops.aten.mv: _count_matrix_vector,
    torch.ops.aten.addmv: _count_added_matrix_vector,
    torch.ops.aten.dot: _count_dot,
}
"""Operations that torch does not count: two operations per multiply-add."""


def operation_counter() -> FlopCounterMode:
    """Return a mode that counts two operations per multiply-add of everything that it sees."""
    return FlopCounterMode(display=False, custom_mapping=_COUNTED)


def explain_uncountable(name: str, error: Exception) -> str:
    """Return the message for a model that does not run on the meta device."""
    text = describe_error(error)
    hint = ""
    if "expected device meta" in text or "same device" in text or "two devices" in text:
        hint = (
            " Register constants by `register_buffer`, and create tensors in `forward` on the "
            "device of the inputs, such as by `x.new_zeros`."
        )
    elif any(sign in text for sign in ("meta tensor", "item()", "nonzero", "data-dependent")):
        hint = (
            " It must not depend on the values of the inputs or lengths: use masks instead of "
            "`if`, `.item()`, boolean indices or packed sequences."
        )
    return (
        f"The price of `{name}` cannot be counted, because its forward fails on the meta device, "
        f"whose tensors have shapes but no values: {text}{hint}"
    )
