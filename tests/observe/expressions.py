"""What an expression of Prometheus names: metrics, and the labels that it counts on."""

from __future__ import annotations

import re

KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
MODIFIERS = "by|without|on|ignoring|group_left|group_right"

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\{([^}]*)\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_LABELS = re.compile(rf"\b(?:{MODIFIERS})\s*\(([^)]*)\)")
_WORD = re.compile(r"[a-zA-Z_:][\w:]*")
_NAME = re.compile(r"(?<![\w.$])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_MATCHED = re.compile(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")


def metrics_in(expression: str) -> set[str]:
    """Everything that is no function, no label, no keyword."""
    bare = _LABELS.sub(" ", _RANGE.sub(" ", _SELECTOR.sub(" ", _TEXT.sub('""', expression))))
    return set(_NAME.findall(bare)) - KEYWORDS


def labels_in(expression: str) -> set[str]:
    """Those matched in braces, and those grouped by."""
    bare = _TEXT.sub('""', expression)
    found = {label for inside in _SELECTOR.findall(bare) for label in _MATCHED.findall(inside)}
    return found.union(*(_WORD.findall(inside) for inside in _LABELS.findall(bare)))


def matched_in(expression: str, label: str) -> set[str]:
    """The values, or alternatives, that a label is to have."""
    values = re.findall(rf'\b{label}\s*=~?\s*"([^"]*)"', expression)
    return {one for value in values for one in value.split("|")}
