"""Compilation of IR for the CPU at hand, by LLVM in this process; no compiler is involved.

What was compiled is kept in the user's own cache, never in an artifact, so that a network loads faster the next time.
"""

import hashlib
from typing import Any

from lighten.errors import require
from lighten.runtime.native import kept
from lighten.runtime.native.schedule import Target, target_of


def host_target() -> Target:
    """What this CPU has."""
    llvm: Any = require("llvmlite.binding", "native")
    return target_of(llvm.get_host_cpu_features().flatten())


def compile_ir(source: str, *, keeps_code: bool = True) -> Any:
    """An engine with get_function_address(name); it owns the code, so keep it as long as that is called.

    keeps_code: for the next process.
    """
    llvm: Any = require("llvmlite.binding", "native")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features:
        features += ",-prefer-256-bit"
    cpu, triple = llvm.get_host_cpu_name(), llvm.get_default_triple()
    target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    version = require("llvmlite", "native").__version__
    key = hashlib.sha256("\0".join([source, triple, cpu, features, version]).encode()).hexdigest()
    code = kept.read(key)
    if code is None:
        code = _compiled(source, target)
        if keeps_code:
            kept.write(key, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine


def _compiled(source: str, target: Any) -> bytes:
    """Machine code, as an object file."""
    llvm: Any = require("llvmlite.binding", "native")
    module = llvm.parse_assembly(source)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    code: bytes = target.emit_object(module)
    return code
