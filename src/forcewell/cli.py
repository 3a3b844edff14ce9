"""The command line: doors without logic. A user's mistake is one line and exit code 2."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from forcewell import __version__, data_commands
from forcewell.conformers_command import conformers
from forcewell.display import say
from forcewell.errors import InputError
from forcewell.process import keep_memory
from forcewell.simulate_command import simulate

app = App(
    name="forcewell",
    version=__version__,
    help="Force-centric pre-training, fine-tuning, simulation and evaluation of models of 3D molecules.",
    suppress_keyboard_interrupt=False,  # main says how to go on
)
data_commands.app.command(conformers)
app.command(data_commands.app)
# Imported when it is asked for: it takes a third of the time in which the program starts.
GENERATE = "Generate labelled data: structures, conformations and labels by xTB, DFT or any ASE calculator."
app.command("forcewell.generate_commands:app", name="generate", help=GENERATE)
app.command(simulate)

Changes = Annotated[
    list[str] | None, Parameter(name="--set", negative=(), help="Change a setting, e.g. --set training.steps=1000; repeatable.")
]
Resume = Annotated[bool, Parameter(negative=(), help="Continue a run that was stopped or killed.")]


@app.command
def quickstart(*, out: Path = Path("quickstart")) -> None:
    """Real data -> pre-training -> fine-tuning -> MD -> report, in minutes on two cores.

    Example: forcewell quickstart --out quickstart

    Parameters
    ----------
    out
        Folder for data, models and report.html.
    """
    from forcewell.quickstart import run

    run(out)


@app.command
def pretrain(config: str, *, out: Path = Path("runs/pretrain"), changes: Changes = None, resume: Resume = False) -> None:
    """Pre-train a model.

    Example: forcewell pretrain et-oreo --set training.batch_size=64 --out runs/et-oreo

    Parameters
    ----------
    config
        A YAML file, or the name of a recipe (et-oreo, et-oreo-faithful, et-ore, quickstart). Another name, such as "list",
        prints the names of all recipes.
    out
        Run folder; holds config.yaml, log.jsonl, model.safetensors (best so far) and state/.
    """
    from forcewell import runs
    from forcewell.config import load_config

    runs.pretrain(load_config(config, changes), out, resume)


@app.command(name="fit-scales")
def fit_scales(config: str, *, out: Path = Path("fitted.safetensors"), changes: Changes = None) -> None:
    """Fit the scale factors of an untrained GemNet-T to its data; pretrain does this by itself.

    Example: forcewell fit-scales et-ore --set model.encoder=gemnet-t --out fitted.safetensors

    Parameters
    ----------
    config
        A YAML file, or the name of a recipe, as for pretrain.
    out
        Model file to write; go on with forcewell finetune CONFIG --from FILE, which keeps the factors.
    """
    from forcewell import runs
    from forcewell.config import load_config

    for name, factor in runs.fitted(load_config(config, changes), out).items():
        say(f"{factor:9.4f}  {name}")
    say(f"wrote {out}")


@app.command
def finetune(
    config: str,
    *,
    from_: Annotated[Path, Parameter(name="--from", help="Model file or run folder to start from, or the name of a model in the package.")],
    out: Path = Path("runs/finetune"),
    changes: Changes = None,
    resume: Resume = False,
) -> None:
    """Continue a model on new data.

    Example: forcewell finetune forces --from forcewell-small --set data=my.xyz --out runs/mine

    Example: forcewell finetune quickstart-finetune --from runs/et-oreo/model.safetensors --set data=my.xyz --out runs/mine

    Parameters
    ----------
    config
        A YAML file, or the name of a recipe (forces: labelled forces of your data; quickstart-finetune).
    out
        Run folder.
    """
    from forcewell import runs
    from forcewell.config import load_config

    if network := next((change for change in changes or () if change.split("=")[0].split(".")[0] == "model"), None):
        raise InputError(f"--set {network}: fine-tuning keeps the network of --from; another one is pre-trained, or trained from scratch")
    runs.finetune(load_config(config, changes), from_, out, resume)


@app.command
def evaluate(
    model: Path,
    data: Path,
    *,
    json: Path | None = None,
    level: str | None = None,
    split: Path | None = None,
    part: str = "test",
    device: str = "cpu",
) -> None:
    """Energy and force errors of a model on labelled data.

    Example: forcewell evaluate model.safetensors rmd17_ethanol_test.npz --json errors.json

    Example: forcewell evaluate model.safetensors qm9.fw --split qm9-molecule.json --part test

    Parameters
    ----------
    model
        Model file, the folder of a run, or the name of a model in the package.
    data
        A store, or a file as it is: extended XYZ, .npz, HDF5 or ASE database.
    json
        Also write the figures to this file.
    level
        Level of theory whose reference energies to use; default: the data's own, else the last fine-tuned.
    split
        Evaluate one part of a split of the data, as `forcewell data split` writes it.
    part
        Which part of the split.
    device
        Where to compute, e.g. cpu or cuda.
    """
    from forcewell.evaluate_command import evaluate_file

    evaluate_file(model, data, json, level, device, split, part)


@app.command
def convert(
    checkpoint: Path, *, out: Path, changes: Changes = None, level: str = "converted", energy_unit: str = "eV", basis: Path | None = None
) -> None:
    """Turn a published checkpoint into a model file, without running anything that is in it.

    Reads TorchMD-Net's and NoisyNode's Equivariant Transformers, Wang et al.'s SchNet, EGNN, Equivariant Transformer and
    SE(3)-Transformer, and GemNet-T of TUM and MDsim.

    Example: forcewell convert epoch=99.ckpt --out model.safetensors --energy-unit kcal/mol

    Parameters
    ----------
    checkpoint
        A file written with torch.save (.pt, .pth or .ckpt).
    out
        Model file to write; must be new.
    changes
        A setting of the checkpoint's model by its published name, where the file does not store it, e.g. num_heads=8.
    level
        Name for the level of theory of its energies.
    energy_unit
        Unit of its energies (eV, kcal/mol, kJ/mol, Hartree); the model file is in eV.
    basis
        For an SE(3)-Transformer: .npz of the coupling matrices it was trained with; default: those of Wang et al.'s.
    """
    from forcewell.convert import convert_file, parse_settings

    done = convert_file(checkpoint, out, settings=parse_settings(changes), level=level, energy_unit=energy_unit, basis=basis)
    say(f"{done.title}, {sum(p.numel() for p in done.potential.parameters())} parameters")
    for note in done.notes:
        say(note)
    say(f"wrote {out}")


@app.command
def report(run: Path) -> None:
    """Write report.html for a run folder.

    Example: forcewell report runs/et-oreo
    """
    from forcewell.report import run_report

    say(f"wrote {run_report(run)}")


@app.command
def bench(
    model: str = "forcewell-small",
    *,
    device: str = "cpu",
    threads: int | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """How fast a model is on this machine: molecular dynamics against atoms and replicas, training, memory.

    Peers in the same environment (TorchMD-Net, NequIP, MACE, SchNetPack) are timed in turns with it.

    Example: forcewell bench forcewell-small --json bench.json

    Parameters
    ----------
    model
        A model file, the folder of a run, or the name of a model in the package.
    device
        Where the model runs: cpu, cuda, cuda:1, ...
    threads
        CPU threads; default: what PyTorch takes.
    json_file
        Also write all figures to this file.
    """
    from forcewell.bench import bench as run

    run(model, device, threads, json_file)


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits: 0 on success, 2 on a mistake of the user's, 130 when interrupted."""
    keep_memory()
    try:
        app(arguments, exit_on_error=False, print_error=False, help_on_error=False, result_action="return_none")
    except InputError as error:
        _fail(str(error))
    except CycloptsError as error:
        _fail(" ".join(str(error).split()) + " (see --help)")
    except OSError as error:
        # A full disk, a read-only folder, no permission: what the system says, and where.
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}")
    except KeyboardInterrupt:
        print(
            "interrupted; --resume continues a run or a simulation, the same command a quickstart, an import or a campaign", file=sys.stderr
        )
        sys.exit(130)


def _fail(message: str) -> None:
    # Of several processes of one run, which all stop for the same reason, the first one speaks.
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
