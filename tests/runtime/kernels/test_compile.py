"""The kernels compile for an H100, which needs none: what the interpreter cannot see, the compiler says."""

import os
import subprocess
import sys

import pytest


def test_the_kernels_compile_for_an_h100(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def compile_all():
    import torch

    from runtime.kernels import (
        choice_triton,
        counting_triton,
        cover_triton,
        grouped_gemm_triton,
        permute_triton,
        unpermute_triton,
    )

    ints, longs = ("*i32",), ("*i64",)
    block = {"BLOCK": 256}
    compiled(counting_triton._histogram, [*longs, *ints, "i32", "i32"], block | {"BINS": 512})
    compiled(counting_triton._sum_over_blocks, [*ints, *longs, "i32", "i32"], {"BLOCK": 512, "KEYS": 8}, num_warps=8)
    for offsets in (longs, (None,)):
        places = [*longs, *ints, *offsets, *longs, "i32", "i32"]
        compiled(counting_triton._write_places, places, block | {"NOTHING": -1}, num_warps=8)
    compiled(counting_triton._exclusive_sum, [*longs, *longs, "i32"], {"BLOCK": 1024})
    chosen = [*longs, *ints, *longs * 5, "i32", "i32", "i32", "i32"]
    compiled(choice_triton._choose, chosen, block | {"NOTHING": -1, "BINS": 512}, num_warps=8)
    tokens = {"K": 8, "COLUMNS": 8, "ROWS": 32}
    compiled(cover_triton._count_tokens, [*longs, *longs, "i32", "i32"], tokens)
    for sizes in (("i32", "i32"), (1, 1)):  # nodes and most copies of an expert: a 1 is compiled in
        covered = [*longs * 10, "i32", "i32", "i32", *sizes, "i32"]
        compiled(cover_triton._cover, covered, tokens | {"NOTHING": -1, "BINS": 512}, num_warps=8)
    moved = compiled(
        permute_triton._permute, ["*bf16", *longs, "*bf16", "i32", 1, "i32"], {"K": 8, "PIECE": 2048, "STEP": 8}
    )
    assert "st.global.v4.b32" in moved, "rows are not written in 16 bytes"
    for weights in ("*fp32", None):
        back = ["*bf16", *longs, weights, "*bf16", "i32"]
        summed = compiled(unpermute_triton._unpermute, back, {"K": 8, "PIECE": 1024, "STEP": 8})
        assert "ld.global.v4.b32" in summed, "rows are not read in 16 bytes"
    for dtype, name in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16"), (torch.float32, "*fp32")):
        for rows_per_group in (4, 64, 4096):
            tile = grouped_gemm_triton.tile_of(dtype, rows_per_group, 2048, 1408)
            options = {option: tile.pop(option) for option in ("num_warps", "num_stages")}
            product = compiled(
                grouped_gemm_triton._grouped_gemm,
                [name, name, *longs, name, "i32", 1, "i32", "i32", 1, "i32", "i32", "i32", "i32"],
                {"GROUPS": 64, "WHOLE": True, "BAND": 8, "WIDEN": False, **tile},
                **options,
            )
            if dtype != torch.float32 and rows_per_group > 16:
                assert "wgmma.mma_async" in product, "the tensor cores are not used as an H100 wants it"


def compiled(kernel, types, constants, **options):
    """PTX of a kernel for pointers and sizes that are multiples of 16; a type that is no text is a constant."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict(zip(kernel.arg_names, types, strict=False))
    constants = constants | {name: kind for name, kind in types.items() if not isinstance(kind, str)}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    place = {name: (index,) for index, name in enumerate(kernel.arg_names)}
    whole = {place[name]: [["tt.divisibility", 16]] for name in kernel.arg_names if name not in constants}
    source = ASTSource(kernel, signature, {place[name]: value for name, value in constants.items()}, whole)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


if __name__ == "__main__":
    compile_all()
