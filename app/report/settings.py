"""The settings of a run, as its configuration names them: the method, the treatments, the published numbers."""

from __future__ import annotations

from typing import Any

from app.report.runs import Run

LAYER_KEYS = ("decorrelation", "meta_layer", "svd_layer")
"""Ends of the keys that name a method: of the model, and of the hybrid protocol."""

TREATMENTS = {
    "spectral": "SN",
    "OrthogonalLoss": "OL",
    "NearestOrthogonalGradient": "NOG",
    "orthogonal": "OW",
    "OptimalLearningRate": "OLR",
}
"""Treatments of the pre-SVD layer, by the weight_treatment or the class of the callback in the configuration."""

IRRELEVANT = (
    "seed_everything",
    "ckpt_path",
    "published",
    "predictions.",
    "checkpoint.dirpath",
    "data.init_args.num_workers",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_",
)
"""Beginnings of the keys whose values do not make a different experiment."""


def settings_of(run: Run) -> dict[str, Any]:
    """The settings that define an experiment, as one flat dictionary: ``model.init_args.dim`` and so on."""
    flat: dict[str, Any] = {}
    if run.config:
        _flatten("", run.config, flat)
    return {key: value for key, value in flat.items() if not key.startswith(IRRELEVANT)}


def _flatten(prefix: str, value: Any, flat: dict[str, Any]) -> None:
    """Add a nested value to a flat dictionary; the entries of a list are called by their index."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        flat[prefix] = value
        return
    for key, inner in value.items():
        _flatten(f"{prefix}.{key}".lstrip("."), inner, flat)


def published_of(run: Run) -> dict[str, Any]:
    """The row of a paper that the configuration names in `published`, with the numbers of the run's meta-layer.

    An entry whose name is a meta-layer holds the numbers of the runs with that layer only. Treatments of the pre-SVD
    layer are added to the name, as in ``svd-pade + NOG + OW``. The layer that the hybrid protocol switches to takes
    precedence over the one that the model starts with. With another `warmup_epochs` than the published one, the entry
    is the one of that name, as in ``svd-pade, warmup_epochs 2``.
    """
    published = run.config.get("published")
    if not isinstance(published, dict):
        return {}
    common = {key: value for key, value in published.items() if not isinstance(value, dict)}
    warmup_epochs = common.pop("warmup_epochs", None)
    own: dict[str, Any] = {}
    for name in _names(settings_of(run), warmup_epochs):
        entry = published.get(name)
        if isinstance(entry, dict):
            own = entry
    return {**common, **own}


def _names(settings: dict[str, Any], published_warmup: Any) -> list[str]:
    """The names under which `published` may list the run's numbers; the last takes precedence."""
    ending = ""
    for key, value in settings.items():
        # The hybrid protocol is in a configuration once at most.
        if key.endswith("warmup_epochs"):
            if value is not None and published_warmup not in (None, value):
                ending = f", warmup_epochs {value}"
            break
    treatments = _treatments(settings)
    names = []
    for key in sorted(settings):
        if key.endswith(LAYER_KEYS):
            names.append(" + ".join([str(settings[key]), *treatments]) + ending)
    return names


def _treatments(settings: dict[str, Any]) -> list[str]:
    """The abbreviations of the treatments of ECCV 2022 that the settings ask for, in the paper's order."""
    asked = set()
    for key, value in settings.items():
        is_callback = key.startswith("trainer.callbacks.") and key.endswith("class_path")
        if is_callback or key.endswith("weight_treatment"):
            # a class may be given by its full path or by its name alone
            asked.add(str(value).rsplit(".", 1)[-1])
    return [short for name, short in TREATMENTS.items() if name in asked]
