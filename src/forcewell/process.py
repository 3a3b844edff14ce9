"""Settings of this program's own processes; never touched at import, never the user's environment."""

import ctypes
import signal
import sys

from forcewell.errors import InputError


def keep_memory() -> bool:
    """Tells glibc to keep freed memory and to serve large blocks from it; True where that took effect.

    A training step frees and asks again for buffers of several MB; by default each comes back as untouched pages
    from the kernel, which cost a tenth of a small model's step and half of a large one's.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False  # another C library
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    return all(mallopt(*setting) == 1 for setting in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)))


def end_with_parent() -> None:
    """On Linux, ends this process when the one that started it dies, even by SIGKILL: two would write to one folder."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def check_device(name: str) -> str:
    """The device's name, if it is there; a GPU becomes the current one, on which graphs and kernels run. Raises InputError where not."""
    import torch

    try:
        if torch.device(name).type not in ("cpu", "cuda"):
            raise RuntimeError("a model runs on cpu or cuda")
        torch.empty(0, device=name, dtype=torch.float64)
        if torch.device(name).index is not None and torch.device(name).type == "cuda":
            torch.cuda.set_device(torch.device(name))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return name
