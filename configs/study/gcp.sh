#!/usr/bin/env bash
# All runs of the study of covariance pooling, three seeds each, and their reports: bash configs/study/gcp.sh
# JOBS=2 lets two runs go on side by side. Runs that are there already are not made again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" FOLDER=runs/study_gcp

run() { # GROUP SEED FLAG...
    group=$1 seed=$2 && shift 2
    [ -e "$FOLDER/$group/version_$seed/finished" ] && return
    rm -rf "${FOLDER:?}/$group/version_$seed"
    python train.py fit --config configs/study/gcp.yaml --seed_everything "$seed" --trainer.enable_progress_bar false \
        --trainer.logger.init_args.name "study_gcp/$group" --trainer.logger.init_args.version "$seed" "$@" \
        > "$FOLDER/$(echo "$group" | tr / _)_$seed.log" 2>&1 || echo "$group, seed $seed: $(tail -n 1 "$FOLDER/$(echo "$group" | tr / _)_$seed.log")"
    touch "$FOLDER/$group/version_$seed/finished"
}
export -f run
mkdir -p "$FOLDER"

HYBRID="--trainer.callbacks+=HybridProtocol --trainer.callbacks.warmup_epochs 1 --trainer.callbacks.svd_layer"
for seed in 0 1 2; do
    for layer in gap isqrt-cov mpn-cov svd-pade svd-exact; do
        echo "standalone/$layer $seed --model.meta_layer $layer"
    done
    for layer in mpn-cov svd-pade svd-exact; do
        echo "hybrid/$layer $seed $HYBRID $layer"
    done
    for layer in isqrt-cov mpn-cov; do
        echo "float32/$layer $seed --model.meta_layer $layer --model.spectral_dtype float32"
    done
    for layer in gap isqrt-cov; do
        echo "landscape/$layer $seed --model.meta_layer $layer --trainer.callbacks+=LossLandscape --trainer.callbacks.every_n_steps 50"
    done
done | xargs -P "${JOBS:-1}" -I{} bash -c 'run {}'

report() { # NAME RUN...
    python -m app.report "${@:2}" --output "configs/study/gcp/$1"
}
report standalone "$FOLDER"/standalone/*
report hybrid "$FOLDER/standalone/isqrt-cov" "$FOLDER"/hybrid/*
report precision "$FOLDER"/{standalone,float32}/{isqrt-cov,mpn-cov}
report landscape "$FOLDER"/landscape/*
