"""A sysfs tree as the amdgpu driver makes it, for tests."""

from pathlib import Path

CPU_NODE = "cpu_cores_count 16\nsimd_count 0\nunique_id 0\ndrm_render_minor 0\ngfx_target_version 0\n"


def amdgpu_tree(root: Path, *gpus: str, with_kfd: bool = True) -> Path:
    """One CPU node, then a node for each of `gpus`: lines of its `properties`; they need drm_render_minor."""
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    (root / "dev/dri").mkdir(parents=True)
    if with_kfd:
        (root / "dev/kfd").touch()
    for number, properties in enumerate((CPU_NODE, *gpus)):
        node = nodes / str(number)
        node.mkdir(parents=True)
        (node / "properties").write_text(properties)
        (node / "gpu_id").write_text(f"{0 if number == 0 else 51_000 + number}\n")
        minor = dict(line.split() for line in properties.splitlines())["drm_render_minor"]
        if minor != "0":
            (root / f"dev/dri/renderD{minor}").touch()
            (root / f"sys/class/drm/renderD{minor}/device").mkdir(parents=True)
    return root


def mi300x(render_minor: int, unique_id: int = 0x9A1B2C3D4E5F6071) -> str:
    return f"simd_count 1216\ngfx_target_version 90402\nunique_id {unique_id}\ndrm_render_minor {render_minor}\n"


def rx_7900(render_minor: int) -> str:
    return f"simd_count 192\ngfx_target_version 110000\nunique_id 0\ndrm_render_minor {render_minor}\n"


def figures(root: Path, render_minor: int, **files: str) -> None:
    """Files of the GPU's device; `_in_hwmon` at the end of a name puts it among the sensors."""
    device = root / f"sys/class/drm/renderD{render_minor}/device"
    for name, text in files.items():
        sensor = name.removesuffix("_in_hwmon")
        path = device / sensor if sensor == name else device / "hwmon/hwmon4" / sensor
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def process(root: Path, pid: int, number: int, vram_bytes: int) -> None:
    """One that holds memory of the `number`th GPU, from 1."""
    directory = root / f"sys/class/kfd/kfd/proc/{pid}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"vram_{51_000 + number}").write_text(f"{vram_bytes}\n")


def on_the_bus(root: Path, render_minor: int, bdf: str) -> None:
    """The device is a link to where it is, as in a real tree."""
    device = root / f"sys/class/drm/renderD{render_minor}/device"
    real = root / "sys/devices" / bdf
    real.parent.mkdir(parents=True, exist_ok=True)
    device.rename(real)
    device.symlink_to(real)
