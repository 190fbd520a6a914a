"""A SLURM job without SLURM: the environment of its tasks, and a `scontrol` that records its arguments."""

import os


def task(job, node=0, nodes=1):
    """Environment of the task of a node, one on each."""
    names = {"JOB_ID": job, "JOB_NAME": "train", "NTASKS": nodes, "NTASKS_PER_NODE": 1, "NNODES": nodes,
             "PROCID": node, "NODEID": node, "LOCALID": 0, "NODELIST": ",".join(["127.0.0.1"] * nodes)}  # fmt: skip
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def with_scontrol(folder, seconds=0):
    """PATH with a `scontrol` that takes so many seconds; its arguments are in ``folder/asked``."""
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/asked"\nsleep {seconds}\ntouch "{folder}/answered"\n')
    scontrol.chmod(0o755)
    return f"{scontrol.parent}:{os.environ['PATH']}"
