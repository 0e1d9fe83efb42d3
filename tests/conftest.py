import gc
import os
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import jaxtyping
import pytest
import shapes
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are interpreted; Triton reads it when it is loaded

os.fsync = lambda descriptor: None  # no test cuts the power; those of what is flushed when look at the calls
jaxtyping.jaxtyped = shapes.checked
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
forkserver.set_forkserver_preload(  # tests share one server, and whoever starts it would say what it has
    [
        "pytest",
        "fastgen.data",
        "fastgen.distillation.distil",
        "fastgen.engine.run",
        "sklearn.datasets",
        "diffusers.models.unets.unet_2d",
        "diffusers.pipelines.consistency_models.pipeline_consistency_models",
    ]
)
forkserver.set_forkserver_preload = lambda modules: None
pytest.register_assert_rewrite(*(file.stem for file in (Path(__file__).parent / "checks").glob("*.py")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--elsewhere", action="store_true", help="round matrix products by where their weights lie")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--elsewhere"):
        import elsewhere

        elsewhere.install()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs last: what breaks a part of them is told by its own tests first."""
    items.sort(key=lambda item: "integration" in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays, and is not searched for garbage meanwhile or at every collection later."""
    gc.disable()
    collected = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture
def assets() -> Path:
    """Real data, teachers and extractors: a folder laid out as data/ teachers/ extractors/."""
    folder = os.environ.get("FASTGEN_ASSETS")
    if not folder:
        pytest.skip("FASTGEN_ASSETS is not set")
    if not Path(folder).is_dir():
        pytest.skip(f"FASTGEN_ASSETS={folder} does not exist")
    return Path(folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without checks of shapes, which double what hundreds of turns cost: each function's own tests make them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are verified in this process instead of a fresh one."""
    from isolated import HERE

    monkeypatch.setattr("fastgen.export.verify.subprocess", HERE)


@pytest.fixture
def in_parts_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CPU stands in for a GPU that has a part of the weights at a time: the devices that Diffusers asks for.

    It asks accelerate for cpu:0, for which that would make tensors in place of parameters.
    """
    import accelerate

    offload, devices = accelerate.cpu_offload, []

    def offloaded(net: torch.nn.Module, device: torch.device, **told: object) -> torch.nn.Module:
        devices.append(device.type)
        return offload(net, device.type, **told)

    monkeypatch.setattr(accelerate, "cpu_offload", offloaded)
    return devices


@pytest.fixture
def few_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures cost as much as tiny training runs do."""
    monkeypatch.setattr("fastgen.distillation.previews.PREVIEW_IMAGES", 4)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What refers to itself stays in memory until somebody asks for it to be collected."""
    gc.disable()
    yield
    gc.enable()
