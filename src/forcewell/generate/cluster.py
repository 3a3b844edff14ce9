"""Campaigns on a cluster: Parsl's high-throughput executor, described by a YAML file of plain values. Needs the extra "cluster".

The file is data: it names no function and holds no shell command, so that one from a colleague can be used unread. What Parsl
puts into a batch script (modules, environment variables, scheduler lines) is quoted or checked here.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import sys
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from forcewell.errors import InputError, nearest
from forcewell.generate.executors import ONE_THREAD, Result, execute

PROVIDERS = {
    "local": "LocalProvider",
    "slurm": "SlurmProvider",
    "pbs": "PBSProProvider",
    "lsf": "LSFProvider",
    "kubernetes": "KubernetesProvider",
}
# What takes batch jobs, where Parsl itself would not say before the first job that it is missing.
COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}
# What starts the workers on the nodes of a block that has several.
LAUNCHERS = {"slurm": "SrunLauncher", "pbs": "MpiExecLauncher", "lsf": "JsrunLauncher"}
OURS = {
    "provider": "local, slurm, pbs, lsf or kubernetes",
    "workers_per_node": "processes on each node, one job and one thread each",
    "address": "name or IP of this machine, as nodes reach it",
    "folder": "where Parsl writes its logs; default runinfo in the current folder",
    "modules": "modules to load, by name",
    "environment": "variables to export",
    "scheduler_options": "lines for the batch script's head; each begins with #",
}
# Options of the providers that are not plain values, or that are put together here.
HIDDEN = {"self", "launcher", "worker_init", "scheduler_options", "parallelism", "regex_job_id"}
QUEUED = 4  # jobs given to Parsl for each worker there may be, so that none waits for this process


class Parsl:
    """The high-throughput executor that a file describes; see ``OURS``, and Parsl's providers for their own options.

    Raises InputError where Parsl is missing, or the file cannot be read, has an unknown key, or an impossible value.
    """

    def __init__(self, path: Path) -> None:
        try:
            import parsl
            from parsl.executors import HighThroughputExecutor
            from parsl.executors.errors import BadStateException
            from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
        except ImportError:
            raise InputError("executor parsl:CONFIG needs Parsl: pip install 'forcewell[cluster]'") from None
        described = read_config(path)
        self._workers = int(described["workers_per_node"])
        provider = _provider(described, path)
        self.slots = QUEUED * self._workers * int(provider.nodes_per_block) * int(provider.max_blocks)
        self.lost: tuple[type[BaseException], ...] = (WorkerLost, ManagerLost)
        self.broken: tuple[type[BaseException], ...] = (BadStateException,)
        executor = HighThroughputExecutor(
            label="campaign",
            provider=provider,
            max_workers_per_node=self._workers,
            address=described.get("address"),
            heartbeat_period=5,  # seconds; as often a node looks whether its workers live
            interchange_launch_cmd=[str(Path(sys.executable).with_name("interchange.py"))],  # by default searched on the PATH
        )
        folder = str(described.get("folder", "runinfo"))
        self._config = parsl.Config(executors=[executor], run_dir=folder, initialize_logging=False)

    def __enter__(self) -> Parsl:
        from parsl import python_app
        from parsl.dataflow.dflow import DataFlowKernel

        self._kernel = DataFlowKernel(self._config)
        self._execute = python_app(execute, data_flow_kernel=self._kernel, executors=["campaign"])
        return self

    def submit(self, work: str, arguments: dict[str, Any]) -> Future[Result]:
        """Gives a job to the cluster."""
        return self._execute(work, arguments)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kernel.cleanup()


def read_config(path: Path) -> dict[str, Any]:
    """The file's content, its keys and plain values checked. Raises InputError."""
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; parsl:CONFIG names a YAML file (see docs/generate.md)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} is not YAML ({' '.join(str(problem).split())})") from None
    if not isinstance(described, dict) or described.get("provider") not in PROVIDERS:
        given = described.get("provider") if isinstance(described, dict) else described
        raise InputError(f"{path}: provider is {given!r}; expected one of {', '.join(PROVIDERS)}")
    workers = described.get("workers_per_node")
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise InputError(f"{path}: workers_per_node is {workers!r}; expected a whole number, the cores of a node")
    for key, value in described.items():
        for text in _texts(value):
            if "\n" in text or "`" in text or "$(" in text:
                raise InputError(f"{path}: {key} is {text!r}; expected one line without shell commands")
    for line in _list(described, "scheduler_options", path):
        if not line.startswith("#"):
            raise InputError(f"{path}: scheduler_options has {line!r}; every line must begin with #, such as #SBATCH --constraint=cpu")
    return described


def _provider(described: dict[str, Any], path: Path) -> Any:
    import parsl.launchers
    import parsl.providers

    name = described["provider"]
    kind = getattr(parsl.providers, PROVIDERS[name])
    parameters = inspect.signature(kind.__init__).parameters
    known = [key for key in parameters if key not in HIDDEN]
    options = {key: value for key, value in described.items() if key not in OURS}
    for key in options:
        if key not in known:
            hint = nearest(key, [*known, *OURS])
            raise InputError(f"{path}: unknown key {key!r}{hint} (known: {', '.join([*OURS, *known])})")
        _check_number(key, options[key], parameters[key].default, path)
    if "scheduler_options" in parameters:
        options["scheduler_options"] = "\n".join(_list(described, "scheduler_options", path))
    elif "scheduler_options" in described:
        raise InputError(f"{path}: provider {name} takes no scheduler_options")
    if options.get("nodes_per_block", 1) != 1 and name in LAUNCHERS:
        options["launcher"] = getattr(parsl.launchers, LAUNCHERS[name])()
    prepared = _preparation(described, path)
    if name in COMMANDS and shutil.which(COMMANDS[name]) is None:
        raise InputError(f"{path}: provider {name} needs the command {COMMANDS[name]}, which is not here; run this on a login node")
    try:
        return kind(worker_init=prepared, **options)
    except Exception as problem:  # of several kinds, among them a missing scheduler command or package
        raise InputError(f"{path}: Parsl refuses this provider ({type(problem).__name__}: {' '.join(str(problem).split())})") from None


def _check_number(key: str, value: Any, usual: Any, path: Path) -> None:
    """Raises InputError where a key that counts something (its usual value is a whole number) does not."""
    if not isinstance(usual, int) or isinstance(usual, bool):
        return
    least = 1 if key in ("nodes_per_block", "max_blocks") else 0
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{path}: {key} is {value!r}; expected a whole number of at least {least}")


def _preparation(described: dict[str, Any], path: Path) -> str:
    """Shell lines before the workers start: this Python, one thread each, then modules and variables as asked."""
    lines = [f"module load {shlex.quote(module)}" for module in _list(described, "modules", path)]
    variables = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = described.get("environment", {})
    if not isinstance(asked, dict) or not all(re.fullmatch(r"[A-Za-z_]\w*", str(name)) for name in asked):
        raise InputError(f"{path}: environment is {asked!r}; expected names of variables with their values")
    variables |= {str(name): str(value) for name, value in asked.items()}
    if described["provider"] != "kubernetes":  # an image has a Python of its own
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    else:
        del variables["PYTHONPATH"]
    return "\n".join([*lines, *(f"export {name}={shlex.quote(value)}" for name, value in variables.items())])


def _list(described: dict[str, Any], key: str, path: Path) -> list[str]:
    value = described.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{path}: {key} is {value!r}; expected a list of words")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *_texts(item))]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
