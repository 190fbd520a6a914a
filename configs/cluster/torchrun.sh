#!/bin/bash
# ResNet-50 on ImageNet on 2 nodes of 8 GPUs, without a scheduler.
#
# HEAD=node0 bash configs/cluster/torchrun.sh [--model.meta_layer isqrt-cov ...]      on each node, in the same folder
#
# HEAD is the name or address of one of the nodes. README.md in this folder says what to change.

export OMP_NUM_THREADS=1                            # the loaders' processes share the cores
# export NCCL_SOCKET_IFNAME=eth0                    # if nodes have several networks: the one between them

# If a process dies, all are restarted, at most three times, and resume from the last checkpoint of this version.
torchrun --nnodes 2 --nproc_per_node 8 --max_restarts 3 \
    --rdzv_id resnet50 --rdzv_backend c10d --rdzv_endpoint "${HEAD:?name of the first node}:29500" \
    train.py fit \
    --config configs/imagenet/resnet50.yaml \
    --trainer.accelerator gpu \
    --trainer.num_nodes 2 \
    --trainer.devices 8 \
    --trainer.strategy DDPStrategy \
    --trainer.strategy.timeout 0:10:00 \
    --trainer.enable_progress_bar false \
    --trainer.logger.version "${VERSION:-0}" \
    --ckpt_path last \
    "$@"
