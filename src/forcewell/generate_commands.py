"""``forcewell generate``: the command-line door to generated data. No logic of its own."""

from __future__ import annotations

import cyclopts

from forcewell.generate.label_command import label

app = cyclopts.App(name="generate", help="Generate labelled data: structures, conformations and labels by xTB, DFT or any ASE calculator.")
app.command(label)
