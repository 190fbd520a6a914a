#!/bin/bash
# ResNet-50 on ImageNet on 2 nodes of 8 GPUs, under SLURM, requeued at the end of each time slot.
#
# sbatch configs/cluster/slurm.sh [--model.meta_layer isqrt-cov ...]      from the folder of train.py
#
# README.md beside this file says what to change, and what happens at a requeue.

#SBATCH --job-name=resnet50          # not "bash" or "interactive": Lightning would not look at SLURM then
#SBATCH --nodes=2                    # = --trainer.num_nodes
#SBATCH --ntasks-per-node=8          # = --trainer.devices: one process a GPU
#SBATCH --gpus-per-node=8            # not --gpus-per-task: every process must see the GPUs of its node
#SBATCH --cpus-per-task=9            # loader processes of a GPU (data.num_workers) and one for training
#SBATCH --mem=0                      # all of the node's
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300         # seconds before the end, more than a validation takes: save, requeue, stop
#SBATCH --requeue                    # also after the failure of a node
#SBATCH --open-mode=append           # a requeued job goes on in its log file
#SBATCH --output=slurm-%j.log

source .venv/bin/activate || exit 1
export OMP_NUM_THREADS=1                            # the loaders' processes share the cores
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK      # srun does not take it over by itself
# export NCCL_SOCKET_IFNAME=ib0                     # where nodes have several networks: that between them

# a job keeps its folder, runs/imagenet_resnet50/version_JOBID, and looks for its last checkpoint there
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
