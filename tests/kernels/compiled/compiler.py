"""Compile every kernel that a piece of code launches for GPUs that are not there. Runs in a process of its own.

The launch is replaced, so that the arguments and constants are those of the real launcher; nothing is executed.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def signature_of(kernel: JITFunction, bound: dict[str, Any]) -> tuple[dict[str, str], dict, dict]:
    """What the compiler must know about the arguments, by the rules that a launch follows."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = bound[parameter.name]
        divisible = False
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            kind = "constexpr"
            constants[(place,)] = value
        elif isinstance(value, torch.Tensor):
            kind, divisible = "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            kind, divisible = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        else:
            kind = "fp32"
        signature[parameter.name] = kind
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def resources_of(cubin: bytes) -> dict[str, int]:
    """Registers, stack, local and shared bytes of the kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def compile_launches(case: str, code: Callable[[], object], architectures: tuple[int, ...]) -> list[dict]:
    """Run `code` and compile what it launches."""
    found: list[dict] = []

    def compile_instead(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        bound = dict(zip(kernel.arg_names, args, strict=False)) | named
        signature, constants, attributes = signature_of(kernel, bound)
        for architecture in architectures:
            source = ASTSource(kernel, signature, constants, attributes)
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
            ptx = compiled.asm["ptx"]
            found.append(
                {
                    "case": case,
                    "kernel": kernel.__name__,
                    "architecture": architecture,
                    "mma": ptx.count("mma.sync"),
                    "wgmma": ptx.count("wgmma.mma_async"),
                    "fma64": ptx.count("fma.rn.f64"),
                    "atomics": len(re.findall(r"\b(atom|red)\.", ptx)),
                    "dynamic_shared": compiled.metadata.shared,
                    **resources_of(compiled.asm["cubin"]),
                }
            )

    original = JITFunction.run
    JITFunction.run = compile_instead  # type: ignore[method-assign, assignment]
    try:
        code()
    finally:
        JITFunction.run = original  # type: ignore[method-assign]
    return found


def main(cases: dict[str, Callable[[], object]]) -> None:
    """Compile the cases named on the command line, all without one, and print what came out as JSON."""
    names = sys.argv[1:] or list(cases)
    results = [row for name in names for row in compile_launches(name, cases[name], (80, 90))]
    print(json.dumps(results))  # noqa: T201
