#!/bin/bash
# ResNet-50 on ImageNet on 2 nodes of 8 GPUs, without a scheduler.
#
# HEAD=node0 bash configs/cluster/torchrun.sh [--model.meta_layer isqrt-cov ...]      on each node, from the same folder
#
# HEAD is the name or address of one of the nodes. README.md beside this file says what to change.

export OMP_NUM_THREADS=1                            # the loaders' processes share the cores
# export NCCL_SOCKET_IFNAME=eth0                    # where nodes have several networks: that between them

# when a process dies, all are started again, three times at most, and go on from the last checkpoint of this version
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
