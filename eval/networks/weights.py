"""Where weights are found: a local path, then the caches. Nothing is downloaded here; errors say what to fetch."""

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from fastgen.errors import UserError
from fastgen.files import cache_folder, sha256_file

ALONE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How Transformers opens a folder: nothing beside it, and no code in it."""

INCEPTION = "inception-2015-12-05.pt"
INCEPTION_ADDRESS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION

ALEXNET = "alexnet.safetensors"
CONVERT_ALEXNET = (
    "import torch, safetensors.torch as s; "
    f"s.save_file(torch.load('alexnet-owt-7be5be79.pth', weights_only=True), '{ALEXNET}')"
)
"""Python that makes the file out of the published one (torchvision's AlexNet_Weights.IMAGENET1K_V1)."""


def model_folder(path: str) -> Path:
    """A local folder, or the hub model of that name in the hub's cache.

    Raises:
        UserError: neither is there; the message says how to fetch it.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"there is no model folder {path!r}, and the hub cache has no model of that name. Give a folder as "
            f"save_pretrained writes it, or fetch one into the cache first: hf download owner/name."
        ) from error


def inception_file(path: str | None, sha256: str | None) -> Path:
    """The TorchScript Inception network, given or in the cache, after its checksum.

    Raises:
        UserError: it is nowhere, or its checksum is not `sha256`.
    """
    file = cache_folder() / INCEPTION if path is None else Path(path)
    if not file.is_file():
        raise UserError(
            f"the Inception network {file} does not exist; fetch {INCEPTION_ADDRESS} and put it there, or give its "
            "path with --extractor"
        )
    found = sha256_file(file)
    if sha256 is not None and found != sha256.lower():
        raise UserError(
            f"{file} has the sha256 {found}, but --extractor-sha256 says {sha256}; fetch {INCEPTION_ADDRESS} again"
        )
    return file


def alexnet_file(path: str | None) -> Path:
    """The state dict of torchvision's AlexNet as safetensors, given or in the cache.

    Raises:
        UserError: it is nowhere.
    """
    file = cache_folder() / ALEXNET if path is None else Path(path)
    if not file.is_file():
        raise UserError(
            f"LPIPS needs the weights of torchvision's AlexNet, but {file} does not exist; make it once in Python by "
            f"{CONVERT_ALEXNET}, and put it there, or give its path with --lpips"
        )
    return file


def fingerprint(folder: Path) -> str:
    """12 hexadecimal digits for the safetensors weights in a folder, whatever the folder is called."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest()[:12]
