"""Checkpoints of EoMT: in the names of their authors or of transformers, which splits and flattens some tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fapn_zoo.convert.key_maps import names_in_transformers
from fapn_zoo.zoo.spec import ModelSpec

PARTS = ("q_proj", "k_proj", "v_proj")
SHARES = "network.attn_mask_probs"


def authors_state(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """A checkpoint of EoMT in the authors' names; of one in transformers', queries, keys and values are joined.

    Raises ValueError where a share of the queries is still masked, or the queries join at another block than the
    model's: neither could be seen in any other tensor.
    """
    state = dict(state)
    if "embeddings.position_embeddings.weight" in state:
        for key in [key for key in state if f".{PARTS[0]}." in key]:
            parts = [key.replace(PARTS[0], part) for part in PARTS]
            if all(part in state for part in parts):
                state[key.replace(PARTS[0], "qkv")] = torch.cat([state.pop(part) for part in parts])
        names = names_in_transformers("eomt").translate(state)
        state = {names.get(key, key): value for key, value in state.items()}
        positions = "network.encoder.backbone.pos_embed"
        state[positions] = state[positions][None]
    blocks = spec.args.get("head_num_blocks", 4)
    shares = state.get(SHARES, torch.zeros(blocks))  # some files leave them out, all are of finished trainings
    if len(shares) != blocks:
        raise ValueError(f"the queries of the checkpoint join {len(shares)} blocks, those of {spec.name!r} {blocks}")
    if not shares.is_meta and shares.any():
        raise ValueError(f"{SHARES} is {shares.tolist()}: the training of this checkpoint is not finished")
    return state | {SHARES: shares.float()}
