"""A method with the weights that its run kept: all that the sites shared."""

from pathlib import Path

from foundation.tensor_files import load_tensors
from ssl_methods.method import Method


def load_shared(method: Method, path: Path) -> bool:
    """Put the file of shared weights into the method, in place; False where it holds other tensors than are shared."""
    tensors, _ = load_tensors(path)
    expected = {name: value.shape for name, value in method.shared_state().items()}
    if {name: value.shape for name, value in tensors.items()} != expected:
        return False
    method.load_state_dict({**method.state_dict(), **tensors})
    method.start_local_parts()
    return True
