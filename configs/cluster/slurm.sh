#!/bin/bash
# ResNet-50 on ImageNet on 2 nodes of 8 GPUs, under SLURM, requeued at the end of each time slot.
#
# sbatch configs/cluster/slurm.sh [--model.meta_layer isqrt-cov ...]      in the folder of train.py
#
# README.md in this folder says what to change and what happens at a requeue.

#SBATCH --job-name=resnet50          # not "bash" or "interactive", for which Lightning ignores SLURM
#SBATCH --nodes=2                    # = --trainer.num_nodes
#SBATCH --ntasks-per-node=8          # = --trainer.devices: one process per GPU
#SBATCH --gpus-per-node=8            # not --gpus-per-task: every process must see the GPUs of its node
#SBATCH --cpus-per-task=9            # loader processes per GPU (data.num_workers), plus one for training
#SBATCH --mem=0                      # all memory of the node
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300         # seconds before the limit, longer than a validation: save, requeue, stop
#SBATCH --requeue                    # also after a node failure
#SBATCH --open-mode=append           # a requeued job appends to its log file
#SBATCH --output=slurm-%j.log

source .venv/bin/activate || exit 1
export OMP_NUM_THREADS=1                            # the loaders' processes share the cores
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK      # srun does not inherit it
# export NCCL_SOCKET_IFNAME=ib0                     # if nodes have several networks: the one between them

# A job keeps its folder, runs/imagenet_resnet50/version_JOBID, and resumes from the last checkpoint in it.
srun --kill-on-bad-exit=1 python train.py fit \
    --config configs/imagenet/resnet50.yaml \
    --trainer.accelerator gpu \
    --trainer.num_nodes 2 \
    --trainer.devices 8 \
    --trainer.strategy DDPStrategy \
    --trainer.strategy.timeout 0:10:00 \
    --trainer.enable_progress_bar false \
    --ckpt_path last \
    "$@"
