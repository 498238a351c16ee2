"""Compilation of IR for the CPU at hand, by LLVM in this process; no compiler and no file is involved."""

from typing import Any

from lighten.errors import require
from lighten.runtime.native.schedule import Target, target_of


def host_target() -> Target:
    """What this CPU has."""
    llvm: Any = require("llvmlite.binding", "native")
    return target_of(llvm.get_host_cpu_features().flatten())


def compile_ir(source: str) -> Any:
    """An engine with get_function_address(name); it owns the code, so keep it as long as that is called."""
    llvm: Any = require("llvmlite.binding", "native")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features:
        features += ",-prefer-256-bit"
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3
    )
    module = llvm.parse_assembly(source)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return engine
