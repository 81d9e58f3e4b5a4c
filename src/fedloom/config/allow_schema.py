"""Read `allow.yaml`, in which the owner of a site limits what a server may ask for.

    tensors: ["llm/*"]        # names of parameters that may be reported, with * for any text
    rounds: 50                # most rounds of a run
    smallest_batch: 8         # smallest local batch: updates of fewer examples reveal more about each
    metrics: [accuracy]       # scores that may leave; an empty list for none
    replies: false            # whether answers to single examples may leave

Keys that are left out have the defaults of `Allow`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedloom.config.schema import Count, Flag, Section, Text
from fedloom.config.validation_errors import build_model
from fedloom.config.yaml_document import MAX_BYTES, read_document
from fedloom.system.json_files import read_text


class Allow(Section):
    """What a server may ask of a site."""

    tensors: tuple[Text, ...] = Field(default=("*",), description="Names of parameters that may be reported.")
    rounds: Count | None = Field(default=None, description="Most rounds of a run; null for any number.")
    smallest_batch: Count = Field(default=1, description="Smallest local batch.")
    metrics: tuple[Text, ...] | None = Field(default=None, description="Scores that may leave; null for all.")
    replies: Flag = Field(default=False, description="Whether answers to single examples may leave.")


def read_allow(path: Path | None) -> Allow:
    """Read the file of a site's owner; None returns the defaults.

    Raises:
        UserError: The file has mistakes; the message lists all of them, one a line.
    """
    if path is None:
        return Allow()
    text = read_text(path, MAX_BYTES)
    return build_model(Allow, read_document(text, str(path))) if text.strip() else Allow()
