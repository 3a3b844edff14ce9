"""``forcewell generate``: the command-line door to generated data. No logic of its own."""

from __future__ import annotations

import cyclopts

from forcewell.generate.enthalpy_command import enthalpy
from forcewell.generate.label_command import label
from forcewell.generate.molecules_command import card, corpus, molecules, sample
from forcewell.generate.polymers_command import poly24, polymers

app = cyclopts.App(name="generate")
for command in (molecules, corpus, card, sample, polymers, poly24, enthalpy, label):
    app.command(command)
