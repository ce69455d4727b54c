"""The registry's one door: versions and the champion rule, files out of it, and the frozen ViTs stored in it."""

from pipeline.backbone_store import fetch_backbone, store_backbone
from pipeline.registry_files import PlacedFile, Pulled, VerifiedFile, pull, verify_checkpoint, verify_version
from pipeline.registry_versions import (
    RegisteredVersion,
    RegistryError,
    get_version,
    list_tasks,
    list_versions,
    promote,
    register,
)

__all__ = [
    "PlacedFile",
    "Pulled",
    "RegisteredVersion",
    "RegistryError",
    "VerifiedFile",
    "fetch_backbone",
    "get_version",
    "list_tasks",
    "list_versions",
    "promote",
    "pull",
    "register",
    "store_backbone",
    "verify_checkpoint",
    "verify_version",
]
