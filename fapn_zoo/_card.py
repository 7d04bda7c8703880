"""The model card of a weights folder, rendered from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

SPDX = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0"}


def render_card(config: Mapping[str, Any], text: str = "") -> str:
    """Markdown with the Hub's metadata block. ``config`` is what `config.json` holds; nothing is made up beside it."""
    model = config["model"]
    license = config["license"]
    metadata = {
        "library_name": "fapn-zoo",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", "fapn-zoo"],
        "license": license if license in SPDX else "other",
    }
    if metadata["license"] == "other":
        metadata["license_name"] = license
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "", f"# {model['name']}", ""]
    lines += [text.strip(), ""] if text.strip() else []
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in _facts(config).items()]
    lines += ["", "```python", "import fapn_zoo", "",
              'model = fapn_zoo.create_model("local-dir:THIS_FOLDER", pretrained=True)',
              'model.predict("photo.jpg").overlay().save("overlay.png")', "```", ""]
    return "\n".join(lines)


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    model, data = config["model"], config["model"]["data"]
    facts = {
        "head, neck, backbone": f"{model['head']}, {model['neck']}, {model['backbone']}",
        "classes": f"{model['num_classes']}" + (f": {', '.join(data['labels'][:20])}" if data["labels"] else ""),
        "license": config["license"],
    }
    if config["source"]:
        facts["source"] = config["source"]
    facts |= {f"{name} (%)": f"{value:.2f}" for name, value in config["metrics"].items()}
    facts |= {f"training: {key}": value for key, value in config["training"].items()}
    return facts
