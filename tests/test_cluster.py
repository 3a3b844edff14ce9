"""Campaigns through Parsl: its local executor with a worker killed, and what each kind of cluster is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from campaign_running import TESTS, WORK, finished, start

from forcewell.errors import InputError
from forcewell.generate import campaign, executors
from forcewell.generate.campaign import Job
from forcewell.store import Store

pytest.importorskip("parsl")


def test_parsl_with_a_worker_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its local high-throughput executor, two workers, one of which is killed: the store is that of the local executor."""
    monkeypatch.setattr(campaign, "WORK", {WORK})
    monkeypatch.setattr(sys, "path", [str(TESTS), *sys.path])
    (tmp_path / "die").touch()
    config = tmp_path / "cluster.yaml"
    config.write_text(f"provider: local\nworkers_per_node: 2\naddress: 127.0.0.1\nfolder: {tmp_path}/runinfo\n", encoding="utf-8")
    log = tmp_path / "log"
    jobs = [Job("water", {"seed": k, "log": str(log)} | ({"die": str(tmp_path / "die")} if k == 2 else {})) for k in range(6)]
    said = finished(start(f"parsl:{config}", tmp_path / "out.fw", jobs))
    print(said)
    assert "6 done, 0 failed, 0 left; 18 frames" in said and not (tmp_path / "die").exists()
    runs = Counter(line.split()[0] for line in log.read_text(encoding="utf-8").splitlines())
    assert runs == {str(k): 2 if k == 2 else 1 for k in range(6)}, "only the job of the killed worker ran twice"
    local = campaign.run(jobs, WORK, tmp_path / "local.fw", {"a": 1}, workers=1)
    assert local.done == 6 and Store(tmp_path / "local.fw").fingerprint == Store(tmp_path / "out.fw").fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; parsl:CONFIG names a YAML file"),
        ("provider: [", "is not YAML"),
        ("provider: sge", "provider is 'sge'; expected one of local, slurm, pbs, lsf, kubernetes"),
        ("provider: slurm", "workers_per_node is None; expected a whole number"),
        ("provider: slurm\nworkers_per_node: 4\nwaltime: '1:00:00'", "unknown key 'waltime'; did you mean 'walltime'"),
        ("provider: slurm\nworkers_per_node: 4\nworker_init: rm -rf", "unknown key 'worker_init'"),
        ('provider: slurm\nworkers_per_node: 4\naccount: "a\\nrm -rf ~"', "expected one line without shell commands"),
        ("provider: slurm\nworkers_per_node: 4\nscheduler_options: [rm]", "every line must begin with #"),
        ("provider: pbs\nworkers_per_node: 4\nenvironment: {'A B': 1}", "yaml: environment is .*; expected names of variables"),
        ("provider: local\nworkers_per_node: 4\nmax_blocks: x", "max_blocks is 'x'; expected a whole number of at least 1"),
        ("provider: local\nworkers_per_node: 4\nmax_blocks: 0", "max_blocks is 0; expected a whole number of at least 1"),
        ("provider: slurm\nworkers_per_node: 4", "provider slurm needs the command sbatch, which is not here"),
        ("provider: kubernetes\nworkers_per_node: 4", "Parsl refuses this provider"),
        ("provider: local\nworkers_per_node: 4\nscheduler_options: ['#x']", "provider local takes no scheduler_options"),
    ],
)
def test_bad_cluster_files(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        executors.make_executor(f"parsl:{file}", None)
    print(caught.value)


@pytest.fixture
def schedulers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of batch systems, of which none takes a job."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "qsub", "bsub"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("schedulers")
def test_a_scheduler_that_takes_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "WORK", {WORK})
    config = tmp_path / "cluster.yaml"
    config.write_text(f"provider: slurm\nworkers_per_node: 2\naddress: 127.0.0.1\nfolder: {tmp_path}/runinfo\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"the executor cannot start its workers .*no such partition") as caught:
        campaign.run([Job("water", {"seed": 0})], WORK, tmp_path / "out.fw", {}, executor=f"parsl:{config}")
    print(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.fw").exists()


@pytest.mark.usefixtures("schedulers")
def test_cluster_files(tmp_path: Path) -> None:
    """What Parsl gets for each batch system: the provider, its options, a launcher for several nodes, a prepared shell."""
    from forcewell.generate.cluster import PROVIDERS, Parsl

    extra = {
        "slurm": "partition: main\nmodules: [gcc/13]\nscheduler_options: ['#SBATCH --mem=0']\nmax_blocks: 3\nnodes_per_block: 2",
        "pbs": "queue: long\nnodes_per_block: 2",
        "lsf": "queue: long\nproject: a b\nnodes_per_block: 2",
        "local": "environment: {WHERE: it's here}",
    }
    for name, options in extra.items():
        (tmp_path / name).write_text(f"provider: {name}\nworkers_per_node: 8\naddress: 127.0.0.1\n{options}\n", encoding="utf-8")
        made = Parsl(tmp_path / name)
        provider = made._config.executors[0].provider
        print(name, type(provider).__name__, made.slots, type(provider.launcher).__name__)
        assert type(provider).__name__ == PROVIDERS[name]
        assert made.slots == 4 * 8 * (6 if name == "slurm" else 1 if name == "local" else 2)
        shell = subprocess.run(
            ["bash", "-c", f"module() {{ echo loaded $2; }}; {provider.worker_init}\nenv"], capture_output=True, text=True
        )
        assert shell.returncode == 0 and "OMP_NUM_THREADS=1" in shell.stdout, shell.stderr
        assert ("loaded gcc/13" in shell.stdout) == (name == "slurm") and ("WHERE=it's here" in shell.stdout) == (name == "local")
        assert type(provider.launcher).__name__ == {"slurm": "SrunLauncher", "pbs": "MpiExecLauncher", "lsf": "JsrunLauncher"}.get(
            name, "SingleNodeLauncher"
        )
