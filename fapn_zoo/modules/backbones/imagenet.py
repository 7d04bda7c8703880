"""timm networks with the ImageNet weights that timm names, fetched from the Hub as our own are."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fapn_zoo.weights import hub

logger = logging.getLogger(__name__)

FREE = ("apache-2.0", "mit", "bsd-3-clause")  # licences that nobody needs to be told of


def build_features(
    name: str, options: Mapping[str, Any], pretrained: bool = False, cache_dir: str | Path | None = None
) -> nn.Module:
    """Lets timm build a feature network; what goes wrong is raised in terms of the user's arguments.

    Raises ValueError for an option that the network does not have, no feature maps, or no ImageNet weights at all;
    ConnectionError where the weights can neither be fetched nor found in the cache.
    """
    weights = _fetch_weights(name, options, cache_dir) if pretrained or name.startswith("hf-hub:") else {}
    try:
        with _without_words():
            network = timm.create_model(name, features_only=True, pretrained=pretrained, **(dict(options) | weights))
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
    if pretrained and (terms := network.pretrained_cfg.get("license")) and terms not in FREE:
        _tell_terms(name, terms)
    return network


@functools.cache
def _tell_terms(name: str, terms: str) -> None:
    """Once in a process."""
    logger.warning("the weights that backbone %s starts from have terms of their own: %s", name, terms)


def _fetch_weights(name: str, options: Mapping[str, Any], cache_dir: str | Path | None) -> dict[str, Any]:
    """What tells timm to read its weights from the file that `fapn_zoo.weights.hub` has fetched and verified.

    For networks whose weights are elsewhere, or in a format of their own, only where to keep them. Of a network that
    the Hub describes, it is the description that is fetched first: timm waits for a minute where there is no network.
    """
    elsewhere = {"cache_dir": cache_dir} if cache_dir is not None else {}
    scheme, _, repository = name.rpartition(":")
    overlay = options.get("pretrained_cfg_overlay")
    filename = "config.json"
    if not scheme:
        config = timm.models.resolve_pretrained_cfg(name, options.get("pretrained_cfg"), overlay)
        if config.file or config.state_dict or config.hf_hub_filename or config.custom_load == "hf":
            return elsewhere
        repository, filename = config.hf_hub_id, "model.safetensors"
    if scheme == "local-dir" or not repository:
        return elsewhere
    try:
        path = hub.download_file(repository, filename, cache_dir=cache_dir)
    except ValueError as error:
        what = "description" if scheme else "ImageNet weights"
        advice = "" if scheme else "; pretrained_backbone=False goes on without them"
        raise ConnectionError(f"no {what} for backbone {name!r}: {error}{advice}") from error
    if scheme or path is None:
        return elsewhere
    return {"pretrained_cfg_overlay": dict(overlay or {}) | {"file": str(path), "custom_load": False}}


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """Keeps from the log what timm says of weights that load: where they are, and that the classifier's are too many.

    Its other warnings, and all that other threads log, are let through.
    """
    thread = threading.get_ident()

    def is_news(record: logging.LogRecord) -> bool:
        expected = record.levelno < logging.WARNING or str(record.msg).startswith("Unexpected keys")
        return record.thread != thread or not expected

    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, ("timm.models._builder", "timm.models._helpers")):
            logger.addFilter(is_news)
            stack.callback(logger.removeFilter, is_news)
        yield
