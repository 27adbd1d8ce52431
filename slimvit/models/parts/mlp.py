"""Hidden neurons of the MLP."""

from __future__ import annotations

from slimvit.models.parts.base import Part

MLP = Part(name="mlp", unit="neuron", units="neurons")
