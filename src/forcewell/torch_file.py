"""Reading files of ``torch.save`` without running anything that is in them.

Such a file is a zip archive of raw tensors and one pickle, a program for a small stack machine that normally may call
any Python function. Here the program is only taken apart (``pickletools``) and followed by an interpreter that knows
containers, numbers, strings and tensors. It never imports or calls what the file names: a tensor is built from its
bytes, objects of a few known packages become plain dictionaries, and any other name is refused.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcewell.errors import InputError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_UNTYPED = "UntypedStorage"  # bytes; the type is told with the tensor
# Packages whose objects stand in checkpoints of training frameworks beside the tensors (settings, callbacks, schedules).
# Their objects are kept as dictionaries of their contents, for the settings in them.
_KNOWN = {"torch", "collections", "argparse", "numpy", "pathlib", "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf"}
_KNOWN |= {"torchmdnet", "copyreg", "_codecs"}
_BUILTINS = {"set", "frozenset", "dict", "list", "tuple", "object", "int", "float", "str", "bool", "bytes", "bytearray", "complex"}
_BUILTINS |= {"slice", "range"}


# What Python says when the program does something impossible, such as taking from an empty stack.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError)


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the file names; nothing is ever looked up by it."""

    module: str
    name: str


class Record(dict[Any, Any]):
    """Contents of an object of the file: its attributes and entries."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype


def read_torch_file(path: Path) -> Any:
    """The tree of dictionaries, lists, numbers, strings and CPU tensors in a file of ``torch.save``.

    Raises InputError for a missing or damaged file, the format of PyTorch before 1.6, a compiled model, or a file that
    asks for anything else than data.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {found}; expected a checkpoint saved with torch.save (.pt, .pth or .ckpt)")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            programs = [name for name in names if name.rpartition("/")[2] == "data.pkl" and name.count("/") < 2]
            if len(programs) != 1 or any(name.endswith("constants.pkl") for name in names):
                raise InputError(f"{path} is a zip archive, but not a checkpoint saved with torch.save")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{path}: torch.save compresses nothing, and this archive is compressed")
            folder = programs[0].removesuffix("data.pkl")
            order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
            if order != b"little":
                raise InputError(f"{path} was saved on a big-endian machine; save it again on a little-endian one")
            return _Machine(lambda key: archive.read(f"{folder}data/{key}"), path).run(archive.read(programs[0]))
    except zipfile.BadZipFile:
        raise InputError(
            f"{path} is not a checkpoint of PyTorch 1.6 or later; open an older one with torch.load and save it again with torch.save"
        ) from None
    except InputError:
        raise
    except _MALFORMED as error:
        raise InputError(f"{path} is damaged: its contents cannot be followed ({' '.join(str(error).split())[:100]})") from None


class _Machine:
    """Follows one pickle. Stack, marks and memo as in the format's definition (Python's pickletools)."""

    def __init__(self, record: Callable[[str], bytes], path: Path) -> None:
        self.record, self.path = record, path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Tensor] = {}

    def run(self, program: bytes) -> Any:
        """The object that the pickle describes."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is not None:
                step(self, argument)
            elif opcode.name in _LITERALS:
                self.stack.append(argument)
            else:
                raise InputError(f"{self.path}: the instruction {opcode.name} has no place in a checkpoint")
        raise ValueError("it has no end")

    def above_mark(self) -> list[Any]:
        """Takes what was put on the stack since the last mark."""
        start = self.marks.pop()
        taken, self.stack[start:] = self.stack[start:], []
        return taken

    def name(self, module: str, name: str) -> None:
        """A name of the file, if it is one that checkpoints have."""
        builtin = module in ("builtins", "__builtin__") and name in _BUILTINS
        if not builtin and module.partition(".")[0] not in _KNOWN:
            raise InputError(f"{self.path} asks for {module}.{name}, which is no data; nothing in it was run")
        self.stack.append(Name(module, name))

    def call(self, function: Any, arguments: tuple[Any, ...]) -> None:
        """What the file would have a function or class make of its arguments, as data."""
        if not isinstance(function, Name):
            raise ValueError("a call of something that is no function")
        if function == Name("torch._utils", "_rebuild_tensor_v2"):
            result: Any = self.tensor(*arguments[:4])
        elif function == Name("torch._utils", "_rebuild_tensor_v3"):  # for types that have no storage of their own
            raise self.unknown(next((part.name for part in arguments if isinstance(part, Name)), "unknown"))
        elif function in (Name("torch._utils", "_rebuild_parameter"), Name("torch.nn.parameter", "Parameter")):
            result = arguments[0]
        elif function.name in ("OrderedDict", "dict", "set", "list", "tuple", "Size"):
            result = _container(function.name, arguments)
        elif function.name in ("_reconstructor", "__newobj__"):
            result = Record()
        else:
            result = Record(zip(range(len(arguments)), arguments, strict=True))
        self.stack.append(result)

    def unknown(self, kind: str) -> InputError:
        """What to say of a type of numbers that models here do not have."""
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES.values())
        return InputError(f"{self.path} has a tensor of type {kind}, which cannot be read (possible: {known}); convert it and save again")

    def tensor(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """A tensor of its own memory. Raises InputError for one that was expanded: a few bytes could then ask for any memory."""
        if storage.key not in self.storages:
            data = bytearray(self.record(storage.key))
            self.storages[storage.key] = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
        values = self.storages[storage.key]
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(values)):
            raise ValueError("a tensor reaches beyond its data")
        if math.prod(size) > len(values):
            raise InputError(
                f"{self.path} has a tensor of shape {tuple(size)} that stores {len(values)} numbers only (made by expand?); "
                "save it again with .contiguous()"
            )
        return values.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def load(self, reference: Any) -> None:
        """("storage", type, key, device, length) -> the tensor data of that key."""
        kind, dtype, key = reference[:3]
        if kind != "storage" or not isinstance(dtype, Name):
            raise ValueError("data that are no tensor's")
        if dtype.name not in _DTYPES and dtype.name != _UNTYPED:
            raise self.unknown(dtype.name.removesuffix("Storage"))
        self.stack.append(_Storage(str(key), _DTYPES.get(dtype.name, torch.uint8)))

    def build(self, state: Any) -> None:
        """Attributes for the object on top of the stack."""
        if isinstance(self.stack[-1], Record):
            for part in state if isinstance(state, tuple) else (state,):
                self.stack[-1].update(part if isinstance(part, dict) else {})


def _container(kind: str, arguments: tuple[Any, ...]) -> Any:
    given = arguments[0] if arguments else ()
    if kind in ("OrderedDict", "dict"):
        return dict(given)
    return {"set": set, "list": list, "tuple": tuple, "Size": tuple}[kind](given)


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(values[::2], values[1::2], strict=True)


def _two(machine: _Machine) -> tuple[Any, Any]:
    last = machine.stack.pop()
    return machine.stack.pop(), last


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        start = len(machine.stack) - size
        machine.stack[start:] = [tuple(machine.stack[start:])]

    return step


def _set_item(machine: _Machine, _: Any) -> None:
    key, value = _two(machine)
    machine.stack[-1][key] = value


def _update(arrange: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        values = arrange(machine.above_mark())
        machine.stack[-1].update(values)

    return step


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.above_mark()
    if isinstance(machine.stack[-1], list):
        machine.stack[-1].extend(values)


# Numbers, strings and bytes written out in the pickle itself.
_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_LITERALS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_LITERALS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": lambda m, a: m.marks.append(len(m.stack)),
    "POP": lambda m, a: m.stack.pop(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "EMPTY_SET": lambda m, a: m.stack.append(set()),
    "DICT": lambda m, a: m.stack.append(dict(_pairs(m.above_mark()))),
    "LIST": lambda m, a: m.stack.append(m.above_mark()),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.above_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _update(list),
    "SETITEM": _set_item,
    "SETITEMS": _update(_pairs),
    "GLOBAL": lambda m, a: m.name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.name(*_two(m)),
    "REDUCE": lambda m, a: m.call(*_two(m)),
    "NEWOBJ": lambda m, a: m.call(*_two(m)),
    "BUILD": lambda m, a: m.build(m.stack.pop()),
    "BINPERSID": lambda m, a: m.load(m.stack.pop()),
    "PUT": lambda m, a: m.memo.__setitem__(int(a), m.stack[-1]),
    "BINPUT": lambda m, a: m.memo.__setitem__(a, m.stack[-1]),
    "LONG_BINPUT": lambda m, a: m.memo.__setitem__(a, m.stack[-1]),
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "GET": lambda m, a: m.stack.append(m.memo[int(a)]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
}
