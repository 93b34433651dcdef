"""What a run that continues from its checkpoint may change, and what older ones were."""

from __future__ import annotations

import re
from typing import Any

from aqnet.config.reading import flattened

# Run length, loader, telemetry, checkpointing, micro-batch, validation interval and paths.
_MAY_CHANGE = re.compile(
    r"run_dir|data\.(stores|sources.*|static_files.*|mask_file|units.*)"
    r"|train\.(micro_batch|max_steps|max_epochs|max_hours|patience|checkpoint_every|keep_best"
    r"|checksum_every|timeout_seconds|workers|log_every|max_bad_steps|evaluate_after_training"
    r"|init_from|init_statistics)|validation\.(every|micro_batch|maps)|plan\..*|report\..*"
)


def as_trained(tree: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint that may be older than some keys, whose defaults it was not
    trained with."""
    return {**tree, "model": {"transport": "off", **tree.get("model", {})}}


def changes_forbidden_on_continuation(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys (with both values) in which two resolved configs differ though a run may not change
    them; data are compared by checksums elsewhere."""
    before, after = flattened(as_trained(old)), flattened(new)
    return [
        f"{key} ({before.get(key)!r} -> {after.get(key)!r})"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _MAY_CHANGE.fullmatch(key)
    ]
