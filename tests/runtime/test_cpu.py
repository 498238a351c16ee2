import pytest

from lighten.runtime.cpu import CPU, from_flags, int8_saturates, this_cpu, usable_cores


def cpu(flags: str, architecture: str = "x86_64", name: str = "some CPU") -> CPU:
    return from_flags(name=name, architecture=architecture, flags=flags.split(), cores=2, memory_bytes=0)


@pytest.mark.parametrize(
    ("found", "saturates"),
    [
        (cpu("sse4_2 avx2 fma"), True),
        (cpu("avx2 avx512f avx512bw"), True),
        (cpu("avx2 avx_vnni"), False),
        (cpu("avx2 avx512f avx512_vnni"), False),
        (cpu("avx2 avx512f avx512_vnni amx_tile amx_int8"), False),
        (cpu("asimd asimddp", "aarch64"), False),
        (cpu("asimd", "aarch64"), False),
    ],
    ids=["haswell", "skylake-x", "alder-lake", "ice-lake", "sapphire-rapids", "neoverse", "cortex-a72"],
)
def test_only_x86_without_vnni_saturates(found: CPU, saturates: bool) -> None:
    assert int8_saturates(found) is saturates


def test_flags_become_features() -> None:
    assert cpu("avx2 avx512f avx512_vnni amx_int8") == CPU(
        name="some CPU", architecture="x86_64", cores=2, avx2=True, avx512=True, vnni=True, amx=True
    )
    assert cpu("asimddp", "aarch64").neon_dotprod
    assert cpu("", "arm64", name="Apple M2").neon_dotprod


def test_this_machine_is_described() -> None:
    found = this_cpu()
    assert found.name
    assert found.cores == usable_cores() >= 1
    assert this_cpu() is found
