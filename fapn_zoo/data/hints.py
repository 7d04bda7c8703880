"""What label values that make no sense were probably meant to be. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from fapn_zoo.data.labels import LabelMap

FEW = 16  # values: more are no ids that somebody has scaled


def id_hint(values: Sequence[int], labels: LabelMap) -> str:
    """Words for label values of which some are out of range; "" where nothing is known of them.

    Args:
        values: all that occur, each once, in increasing order.
    """
    count = labels.num_classes
    plain = [v for v in values if v != labels.ignore_index]
    if not plain or plain[-1] < count or plain[0] < 0:
        return ""
    if plain[-1] == count:
        if 0 in values:
            return f"0..{count} are {count + 1} ids for {count} names: is one missing, such as background for 0?"
        shifted = f'"values": {[*range(1, count + 1)]}' if count <= FEW else '"values": [1, 2, ...]'
        return f"do the ids start at 1? They start at 0: subtract 1, or write {shifted} into classes.json"
    if len(plain) > FEW:
        return "so many values: was the label resized with interpolation, or are there more classes?"
    ids = next((ids for ids in (values, plain) if len(ids) == count), None)
    return f'are they the {count} classes in other values? Write "values": {[*ids]} into classes.json' if ids else ""


def ignored_hint(absent: Sequence[int], labels: LabelMap) -> str:
    """What the ignored value probably is, where it occurs and classes do not; `absent` are the ids of these."""
    value = labels.ignore_index
    if value < labels.num_classes:
        return (
            f"if {labels.names[value]!r} is a class of its own, set ignore_index to a value that no pixel has, as 255"
        )
    if len(absent) == 1:
        values = [value if i == absent[0] else i for i in range(labels.num_classes)]
        way = f', or write "values": {values} into classes.json' if labels.raw is None and len(values) <= FEW else ""
        return f"{value} is probably {labels.names[absent[0]]!r}; save it as {absent[0]}{way}"
    few = " or ".join(repr(labels.names[i]) for i in absent) if len(absent) <= 3 else ""
    return f"if {value} is {few}, save it as the id of that class" if few else ""
