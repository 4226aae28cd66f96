"""Addresses of Ray clusters as they are written on the command line. Light: Ray is not imported."""

from __future__ import annotations

from gguf_harness.errors import OptionError

__all__ = ["check_address"]


def check_address(address: str, name: str = "--gguf-ray") -> str:
    """An address as it may be given.

    Args:
        address: host:port, auto or local.
        name: of the option or variable that has it.

    Raises:
        OptionError: it is none.
    """
    if address.startswith("ray://"):
        raise OptionError(
            f"{name}={address}: Ray's client protocol is not supported.",
            "Run on a machine of the cluster, or with `ray job submit`, and give host:port of its head node.",
        )
    _, colon, port = address.rpartition(":")
    if address not in {"auto", "local"} and not (colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise OptionError(
            f"{name}={address} is not an address of a Ray cluster.",
            "Give host:port of its head node, auto for the cluster of this machine, or local to start one; without an"
            " address the option stands behind the paths.",
        )
    return address
