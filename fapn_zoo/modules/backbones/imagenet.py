"""timm networks with the ImageNet weights that timm names, fetched from the Hub as our own are."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fapn_zoo.weights import hub


def build_features(
    name: str, options: Mapping[str, Any], pretrained: bool = False, cache_dir: str | Path | None = None
) -> nn.Module:
    """Lets timm build a feature network; what goes wrong is raised in terms of the user's arguments.

    Raises:
        ValueError: an option that the network does not have, no feature maps, or no ImageNet weights at all.
        ConnectionError: the weights can neither be fetched nor found in the cache.
    """
    own = {"pretrained_cfg", "pretrained_cfg_overlay"} & set(options)  # the caller says where the weights are
    weights = _fetch_weights(name, cache_dir) if pretrained and not own else {}
    try:
        with _without_words():
            return timm.create_model(name, features_only=True, pretrained=pretrained, **options, **weights)
    except TypeError as error:
        raise ValueError(f"backbone {name!r} does not take one of the arguments {sorted(options)}: {error}") from error
    except OSError as error:
        if not pretrained:
            raise
        raise ConnectionError(
            f"timm cannot fetch the ImageNet weights of backbone {name!r} ({str(error).strip().splitlines()[0]}); "
            "check the connection, or go on without them (pretrained_backbone=False)"
        ) from error
    except Exception as error:
        what = "with its ImageNet weights" if pretrained else "as a feature network"
        raise ValueError(f"timm cannot build backbone {name!r} {what}: {error}") from error


def _fetch_weights(name: str, cache_dir: str | Path | None) -> dict[str, Any]:
    """What tells timm to read its weights from the file that `fapn_zoo.weights.hub` has fetched and verified.

    For the few networks whose weights timm has elsewhere, or in a format of their own, only where to keep them.
    """
    elsewhere = {"cache_dir": cache_dir} if cache_dir is not None else {}
    config = None if ":" in name else timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.hf_hub_id or config.hf_hub_filename or config.custom_load:
        return elsewhere
    try:
        path = hub.download_file(config.hf_hub_id, "model.safetensors", cache_dir=cache_dir)
    except ValueError as error:
        raise ConnectionError(
            f"no ImageNet weights for backbone {name!r}: {error}; pretrained_backbone=False goes on without them"
        ) from error
    return {"pretrained_cfg_overlay": {"file": str(path)}} if path is not None else elsewhere


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Keeps from the log what timm says of weights that load: where they are, and that the classifier's are too many.

    Its other warnings, and all that other threads log, are let through.
    """
    thread, logger = threading.get_ident(), logging.getLogger("timm.models._builder")

    def is_news(record: logging.LogRecord) -> bool:
        expected = record.levelno < logging.WARNING or str(record.msg).startswith("Unexpected keys")
        return record.thread != thread or not expected

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)
