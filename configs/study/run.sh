#!/usr/bin/env bash
# All runs of a study, three seeds each, and their reports:
#
#   bash configs/study/run.sh gcp              covariance pooling, configs/study/gcp.yaml
#   bash configs/study/run.sh decorrelation    decorrelated batch norm, configs/study/decorrelation.yaml
#
# JOBS=2 runs two of them at a time. Runs that have finished are not repeated.
set -euo pipefail
case "${1:-}" in gcp | decorrelation) ;; *) echo "error: run.sh ${1:-}: there are two studies, gcp and decorrelation" >&2 && exit 2 ;; esac
cd "$(dirname "$0")/../.."
export STUDY="$1" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
FOLDER="runs/study_$STUDY"

run() { # GROUP SEED FLAG...
    group=$1 seed=$2 folder="runs/study_$STUDY/$1/version_$2" && shift 2
    [ -e "$folder/finished" ] && return
    rm -rf "$folder" && mkdir -p "$folder"
    if python train.py fit --config "configs/study/$STUDY.yaml" --seed_everything "$seed" \
        --trainer.enable_progress_bar false --trainer.logger.init_args.name "study_$STUDY/$group" \
        --trainer.logger.init_args.version "$seed" "$@" > "$folder/output.txt" 2>&1; then
        touch "$folder/finished"
    fi
    echo "$group, seed $seed: $(tail -n 1 "$folder/output.txt")"
}
export -f run

report() { # NAME RUN...
    python -m app.report "${@:2}" --output "configs/study/$STUDY/$1"
}

callback() { printf -- '--trainer.callbacks+=%s ' "$@"; }

gcp() {
    landscape="$(callback LossLandscape) --trainer.callbacks.every_n_steps 50" # does not change the training
    for layer in gap isqrt-cov; do
        echo "standalone/$layer $1 --model.meta_layer $layer $landscape"
    done
    for layer in mpn-cov svd-pade svd-exact; do
        echo "standalone/$layer $1 --model.meta_layer $layer"
        echo "hybrid/$layer $1 $(callback HybridProtocol) --trainer.callbacks.svd_layer $layer"
    done
    for layer in isqrt-cov mpn-cov; do
        echo "float32/$layer-float32 $1 --model.meta_layer $layer --model.spectral_dtype float32"
    done
}

decorrelation() {
    sn="--model.weight_treatment spectral" ow="--model.weight_treatment orthogonal"
    ol=$(callback OrthogonalLoss) nog=$(callback NearestOrthogonalGradient) olr=$(callback OptimalLearningRate)
    echo "SVD $1"
    echo "SN $1 $sn"
    echo "OL $1 $ol"
    echo "OW $1 $ow"
    echo "NOG $1 $nog"
    echo "OLR $1 $olr"
    echo "NOG+OW $1 $nog $ow"
    echo "NOG+OW+OLR $1 $nog $olr $ow"
    echo "Newton-Schulz $1 --model.decorrelation isqrt-cov"
}

for seed in 0 1 2; do "$STUDY" "$seed"; done | xargs -P "${JOBS:-1}" -I{} bash -c 'run {}'

if [ "$STUDY" = gcp ]; then
    report standalone "$FOLDER"/standalone/*
    report hybrid "$FOLDER/standalone/isqrt-cov" "$FOLDER"/hybrid/*
    report precision "$FOLDER"/standalone/{isqrt-cov,mpn-cov} "$FOLDER"/float32/*
    report landscape "$FOLDER"/standalone/{gap,isqrt-cov}
else
    report weights "$FOLDER"/{SVD,SN,OL,OW,Newton-Schulz}
    report gradients "$FOLDER"/{SVD,OW,NOG,OLR,NOG+OW,NOG+OW+OLR}
fi
