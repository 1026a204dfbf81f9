"""Stand-ins for Slurm's commands: jobs run on this machine, in the folder $SLURM_STAND_IN.

    python slurm_stand_in.py install FOLDER    writes sbatch, sacct, scancel and so on to a folder for PATH
    python slurm_stand_in.py sbatch ...        what those files run

Each job has three files: JOB.arguments, JOB.state, as `sacct` prints it, and JOB.group, its process group. With
$SLURM_STAND_IN_WAITS, `sbatch` returns when the job has ended, which saves waiting for the next query of its state.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "sacct", "scancel", "sinfo", "squeue", "scontrol", "sacctmgr", "sshare", "srun")
RUN = 'if sh -c "$1"; then state=COMPLETED; else state=FAILED; fi; grep -q CANCELLED "$2" || echo $state > "$2"'


def install(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(__file__)} {name} "$@"\n')
        path.chmod(0o755)


def sbatch(state: Path, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("--job-name", "--output", "--wrap"):
        parser.add_argument(option, required=True)
    parser.add_argument("-D", default=".")
    a, _ = parser.parse_known_args(arguments)
    job = str(1 + len(list(state.glob("*.arguments"))))
    (state / f"{job}.arguments").write_text(json.dumps(arguments))
    (state / f"{job}.state").write_text("RUNNING\n")
    with open(a.output.replace("%j", job), "wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", RUN, "sh", a.wrap, state / f"{job}.state"], cwd=a.D, env=os.environ | {"SLURM_JOB_ID": job},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    (state / f"{job}.group").write_text(str(process.pid))
    if "SLURM_STAND_IN_WAITS" in os.environ:
        process.wait()
    print(job)


def sacct(state: Path, arguments: list[str]) -> None:
    if "-X" in arguments:  # else the reason of a failure, or the account of earlier jobs
        for path in sorted(state.glob("*.state")):
            print(f"{path.stem}|{path.read_text().strip()}")


def scancel(state: Path, arguments: list[str]) -> None:
    for job in (word for word in arguments if word.isdecimal()):
        (state / f"{job}.state").write_text("CANCELLED\n")
        os.killpg(
            int((state / f"{job}.group").read_text()), signal.SIGKILL
        )  # which Slurm sends half a minute after SIGTERM


def srun(arguments: list[str]) -> None:
    while arguments[0].startswith("-"):
        arguments = arguments[1:]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "install":
        install(Path(rest[0]))
    elif command == "srun":
        srun(rest)
    else:
        jobs = Path(os.environ["SLURM_STAND_IN"])
        {"sbatch": sbatch, "sacct": sacct, "scancel": scancel}.get(command, lambda *_: None)(jobs, rest)
