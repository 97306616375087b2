"""Builds `emulate.cpp` with the machine's C++20 compiler and runs the CUDA kernels in it on torch tensors."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[3] / "sst_d2" / "modeling" / "ops" / "csrc"
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SANITIZERS = {
    "plain": ["-O0"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
PROBE = (
    "#include <atomic>\n#include <ucontext.h>\nint main() { float x = 0; std::atomic_ref<float>(x).fetch_add(1); }\n"
)


@functools.cache
def compiler() -> str | None:
    """A command that compiles the emulator's C++20, or None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name) and _compiles(name, []):
            return name
    return None


@functools.cache
def has_sanitizer(name: str) -> bool:
    """Whether the compiler can build, and the machine run, a program with it."""
    return _compiles(compiler(), SANITIZERS[name], run=True)


def _compiles(command: str, options: list[str], run: bool = False) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cpp", Path(folder) / "probe"
        source.write_text(PROBE)
        line = [command, "-std=c++20", *options, str(source), "-o", str(program)]
        if subprocess.run(line, capture_output=True).returncode:
            return False
        return not run or subprocess.run([str(program)], capture_output=True).returncode == 0


def build(source: Path, program: Path, sanitizer: str = "plain", options: tuple[str, ...] = ()) -> Path:
    """Compile a C++ file that includes `cuda_emulator.h`; returns ``program``."""
    line = [compiler(), "-std=c++20", "-g0", "-fno-strict-aliasing", *SANITIZERS[sanitizer]]
    line += ["-I", str(HERE), "-I", str(SOURCES), str(source), "-o", str(program), *options]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@dataclass
class Call:
    """One launch: tensors as the operations take them, `references` only where fused, `grad_output` only backward.

    Attributes:
        most_images: images of one launch; more are launched again.
    """

    shapes: list[tuple[int, int]]
    value: torch.Tensor
    positions: torch.Tensor
    weights: torch.Tensor
    references: torch.Tensor | None = None
    grad_output: torch.Tensor | None = None
    most_images: int = 65535

    def to_bytes(self) -> bytes:
        """What `emulate.cpp` reads."""
        fused, backward = self.references is not None, self.grad_output is not None
        images, queries, heads, levels, points = self.positions.shape[:5]
        references = self.references if fused else torch.empty(0, 0, 0, 2)
        kinds = [KINDS[tensor.dtype] for tensor in (self.value, self.positions, references, self.weights)]
        sizes = (images, self.value.shape[1], heads, self.value.shape[3], queries, levels, points)
        numbers = [backward, fused, *kinds, references.shape[0], references.shape[2], self.most_images, *sizes]
        numbers += [number for shape in self.shapes for number in shape]
        tensors = [*([self.grad_output] if backward else []), self.value, self.positions, references, self.weights]
        return struct.pack(f"={len(numbers)}q", *numbers) + b"".join(map(_bytes, tensors))

    def results(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each result."""
        if self.grad_output is None:
            images, queries = self.positions.shape[:2]
            return [((images, queries, self.value.shape[2] * self.value.shape[3]), self.value.dtype)]
        inputs = (self.positions, self.weights)
        return [(tuple(self.value.shape), torch.float32), *((tuple(t.shape), t.dtype) for t in inputs)]


def run(program: Path, calls: list[Call], folder: Path) -> list[list[torch.Tensor]]:
    """The results of each call: output, or the gradients of value, positions and weights.

    Raises:
        AssertionError: the program failed; with what it said.
    """
    source, target = folder / "calls.bin", folder / "results.bin"
    source.write_bytes(b"".join(call.to_bytes() for call in calls))
    done = subprocess.run([str(program), str(source), str(target)], capture_output=True, text=True)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-4000:]}"
    data, results = bytearray(target.read_bytes()), []
    for call in calls:
        tensors = []
        for shape, dtype in call.results():
            count = torch.Size(shape).numel()
            size = count * dtype.itemsize
            tensors.append(torch.frombuffer(data[:size], dtype=dtype).view(shape) if count else torch.empty(shape))
            del data[:size]
        results.append(tensors)
    assert not data
    return results


def launches(program: Path, calls: list[Call], folder: Path) -> list[tuple[int, int, int, int, bytes]]:
    """How C++ launches each call: lanes, threads, tiles, bytes of shared memory, and the struct Problem."""
    source, target, launched = (folder / f"{name}.bin" for name in ("calls", "results", "launches"))
    source.write_bytes(b"".join(call.to_bytes() for call in calls))
    subprocess.run([str(program), str(source), str(target), str(launched)], check=True)
    data = launched.read_bytes()
    size = len(data) // len(calls)
    records = [data[start : start + size] for start in range(0, len(data), size)]
    return [(*struct.unpack_from("=4i", record), record[16:]) for record in records]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
