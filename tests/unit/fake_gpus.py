"""GPUs that are not there, as torch and NVIDIA's driver would tell of them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

GIB = 2**30

NVIDIA = {
    "P100": ("Tesla P100-PCIE-16GB", (6, 0), 16),
    "V100": ("Tesla V100-SXM2-32GB", (7, 0), 32),
    "T4": ("Tesla T4", (7, 5), 15),
    "A100": ("NVIDIA A100-SXM4-80GB", (8, 0), 80),
    "RTX 3090": ("NVIDIA GeForce RTX 3090", (8, 6), 24),
    "L4": ("NVIDIA L4", (8, 9), 23),
    "H100": ("NVIDIA H100 80GB HBM3", (9, 0), 80),
    "B200": ("NVIDIA B200", (10, 0), 180),
    "RTX 5090": ("NVIDIA GeForce RTX 5090", (12, 0), 32),
}
AMD = {
    "MI300X": ("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", (9, 4), 192),
    "MI250X": ("AMD Instinct MI250X", "gfx90a:sramecc+:xnack-", (9, 0), 64),
    "RX 7900": ("AMD Radeon RX 7900 XTX", "gfx1100", (11, 0), 24),
    "MI50": ("AMD Instinct MI50", "gfx906:sramecc-:xnack-", (9, 0), 16),
}
GPUS = {key: (name, capability, gib, "") for key, (name, capability, gib) in NVIDIA.items()} | {
    key: (name, capability, gib, arch) for key, (name, arch, capability, gib) in AMD.items()
}


def pretend(monkeypatch, *keys: str) -> None:
    """Let torch tell of these GPUs, NVIDIA's or AMD's, and of no other device."""
    found = [GPUS[key] for key in keys]

    def of(index):
        return found[0 if index is None else index]

    def properties(index=None):
        name, (major, minor), gib, arch = of(index)
        amd = {"gcnArchName": arch} if arch else {}
        return SimpleNamespace(name=name, major=major, minor=minor, total_memory=gib * GIB, **amd)

    monkeypatch.setattr(torch.version, "hip", "7.1.0" if found[0][3] else None)
    monkeypatch.setattr(torch.version, "cuda", None if found[0][3] else "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: of(index)[0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: of(index)[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)  # a T4 emulates it
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=None: (of(index)[2] * GIB // 2, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])


def pretend_intel(monkeypatch, *, bf16: bool = True, fp64: bool = True) -> None:
    """Let torch tell of an Intel GPU."""
    properties = SimpleNamespace(
        total_memory=16 * GIB, driver_version="1.6.3", has_bfloat16_conversions=bf16, has_fp64=fp64
    )
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda index=None: "Intel Arc B580")
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index=None: properties)


def pretend_apple(monkeypatch, *, macos: int = 15, version: str = "2.13.0") -> None:
    """Let torch tell of an Apple GPU."""
    mps = torch.backends.mps
    monkeypatch.setattr(mps, "is_available", lambda: True)
    monkeypatch.setattr(mps, "get_name", lambda: "Apple M4")
    monkeypatch.setattr(mps, "is_macos_or_newer", lambda major, minor: (macos, 0) >= (major, minor))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))


def install_flash_attention(
    monkeypatch, folder: Path, version: str = "2.8.3", *, name: str = "flash-attn", code: str = ""
) -> None:
    """Put a package where Python finds it, with the metadata of an installed one."""
    (folder / "flash_attn").mkdir(parents=True)
    (folder / "flash_attn" / "__init__.py").write_text(code)
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)


def install_driver(monkeypatch, folder: Path, *names: str, says: int = 0) -> None:
    """Put an nvidia-smi on the path that lists these GPUs."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{name}'\n" for name in names) + f"exit {says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
