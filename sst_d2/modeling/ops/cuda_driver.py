"""The CUDA driver, ``libcuda``, through ctypes: loads compiled kernels and launches them.

PyTorch works in the primary context of each GPU, and so does this. A thread that has not touched a GPU yet has no
context, whatever PyTorch takes for its current device; so each call brings its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Sequence

_KERNELS = ("sst_msda_forward", "sst_msda_forward_fused", "sst_msda_backward", "sst_msda_backward_fused")


@functools.cache
def driver() -> Driver:
    """The one of this process.

    Raises:
        OSError: there is no NVIDIA driver.
    """
    return Driver(ctypes.CDLL("libcuda.so.1"))


class Driver:
    """A driver with what it has loaded.

    Args:
        library: ``libcuda``; PyTorch has initialised it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        pointer, number = ctypes.c_void_p, ctypes.c_uint
        library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, *[pointer] * 3]
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._kernels: dict[tuple[int, str, int], dict[str, ctypes.c_void_p]] = {}
        self._lock = threading.Lock()

    def kernels(self, gpu: int, value: str, lanes: int, make_image: Callable[[], bytes]) -> dict[str, ctypes.c_void_p]:
        """The four kernels of a type and number of lanes on a GPU; ``make_image`` is called the first time.

        Raises:
            RuntimeError: the driver refuses the image.
        """
        key = (gpu, value, lanes)
        if key not in self._kernels:
            with self._lock, self._context(gpu):
                if key not in self._kernels:  # another thread may have been first
                    self._kernels[key] = self._load(make_image())
        return self._kernels[key]

    def _load(self, image: bytes) -> dict[str, ctypes.c_void_p]:
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), image)
        found = {name: ctypes.c_void_p() for name in _KERNELS}
        for name, function in found.items():
            self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return found

    def launch(
        self,
        gpu: int,
        kernel: ctypes.c_void_p,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream: int,
        arguments: Sequence[ctypes.c_void_p | ctypes.Structure],
    ) -> None:
        """Launch a kernel on a stream; does not wait for it.

        Raises:
            RuntimeError: the driver refuses, or an earlier kernel has failed.
        """
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        with self._context(gpu):
            self._call("cuLaunchKernel", kernel, *grid, threads, 1, 1, shared_bytes, stream, places, None)

    @contextlib.contextmanager
    def _context(self, gpu: int) -> Iterator[None]:
        """Make the GPU's primary context current meanwhile."""
        if gpu not in self._contexts:
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(device), gpu)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts[gpu] = context
        self._call("cuCtxPushCurrent_v2", self._contexts[gpu])
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            texts = []
            for question in ("cuGetErrorName", "cuGetErrorString"):
                text = ctypes.c_char_p()
                getattr(self._library, question)(status, ctypes.byref(text))
                texts.append((text.value or b"unknown error").decode())
            raise RuntimeError(f"CUDA driver, {name}: {texts[0]}: {texts[1]}")
