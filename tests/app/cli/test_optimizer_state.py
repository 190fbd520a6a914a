"""States of optimizers that are damaged or contradict the optimizer: named before the first step."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from app.cli.optimizer_state import check_optimizer_states, count_states
from app.cli.schedule_state import check_rates, check_schedule_states

OPTIMIZERS = {
    "SGD": {"momentum": 0.9}, "SGD ": {"momentum": 0.9, "nesterov": True}, "Adam": {"amsgrad": True}, "AdamW": {},
    "Adagrad": {}, "Adadelta": {}, "Adamax": {}, "ASGD": {}, "NAdam": {}, "RAdam": {}, "RMSprop": {"centered": True},
    "Rprop": {}, "Adafactor": {}, "LBFGS": {},
}  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def build(name, **settings):
    """An optimizer with two parameter groups, or with one where it takes no more."""
    model = network()
    groups = [{"params": list(model[:2].parameters())}, {"params": list(model[2:].parameters()), "lr": 0.05}]
    kind = getattr(torch.optim, name.strip())
    if kind is torch.optim.LBFGS:
        return model, kind(model.parameters(), lr=0.1)
    return model, kind(groups, lr=0.1, **settings)


def trained(name, **settings):
    model, optimizer = build(name, **settings)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, 3, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return optimizer


def check(state, optimizer, **options):
    check_optimizer_states([state], [optimizer], **{"same_settings": True, "steps": 3, **options})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_of_torch_takes_its_own_state(name):
    settings = OPTIMIZERS[name]
    state = copy.deepcopy(trained(name, **settings).state_dict())
    _, optimizer = build(name, **settings)
    check(state, optimizer, counts=count_states([state]))
    # A new optimizer has no state yet, and neither has one without memory.
    check(build(name, **settings)[1].state_dict(), optimizer, steps=0)
    with pytest.raises(ValueError, match="holds no state of its parameters, after 3 steps"):
        check({**state, "state": {}}, optimizer)


def test_an_optimizer_without_memory_has_no_state():
    check(trained("SGD").state_dict(), build("SGD")[1])


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "LBFGS"])
def test_a_buffer_of_another_shape_in_any_optimizer(name):
    settings = OPTIMIZERS[name]
    state = copy.deepcopy(trained(name, **settings).state_dict())
    _, optimizer = build(name, **settings)
    for key, value in state["state"][0].items():
        if isinstance(value, torch.Tensor) and value.ndim:
            for wrong in (torch.zeros(7), "x", value.to(torch.long), value * float("nan")):
                changed = copy.deepcopy(state)
                changed["state"][0][key] = wrong
                with pytest.raises(ValueError, match=rf"optimizer_states\[0\]\.state\[0\]\.{key}"):
                    check(changed, optimizer)
        changed = copy.deepcopy(state)
        del changed["state"][0][key]
        with pytest.raises(ValueError, match=rf"state\[0\] has no {key}"):
            check(changed, optimizer)


def test_the_vectors_of_lbfgs():
    state = trained("LBFGS").state_dict()
    state["state"][0]["d"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"state\[0\]\.d is not a vector of \d+ numbers"):
        check(state, build("LBFGS")[1])


def changed_group(key, value):
    return lambda state: state["param_groups"][1].__setitem__(key, value)


def changed_state(key, value):
    return lambda state: state["state"][3].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: None, None),
        (changed_group("lr", "x"), r"param_groups\[1\]\.lr is x, not a number"),
        (changed_group("lr", -1.0), r"param_groups\[1\]\.lr is -1\.0, not a finite number of at least 0"),
        (changed_group("lr", float("nan")), "not a finite number"),
        (changed_group("lr", 10**400), "not a number"),
        (changed_group("betas", (0.9, "x")), r"betas\[1\] is x, not a number"),
        (changed_group("maximize", True), "maximize is True, and the settings beside it say False"),
        (changed_group("weight_decay", -5.0), "weight_decay is -5.0, and the settings beside it say 0"),
        (changed_group("eps", "x"), "eps is x, not a number"),
        (changed_group("amsgrad", None), "amsgrad is None, not true or false"),
        (lambda state: state["param_groups"][0].pop("lr"), r"param_groups\[0\] has no lr"),
        (lambda state: state["param_groups"][0].pop("amsgrad"), r"param_groups\[0\] has no amsgrad"),
        (lambda state: state["param_groups"][0].pop("fused"), None),  # an option that later versions have added
        (lambda state: state["param_groups"].pop(), "has 1 parameter groups, and there are 2"),
        (changed_group("params", [4]), "is not of 2 parameters"),
        (changed_group("params", [0, 1]), "a parameter in two groups"),
        (changed_group("params", ["x", 1]), r"params\[0\] is x, not a whole number"),
        (lambda state: state["state"].pop(3), "holds 5 of 6 entries"),
        (lambda state: state["state"].__setitem__(99, {}), r"state\[99\] belongs to no parameter"),
        (lambda state: state["state"].__setitem__(3, [1]), r"state\[3\] is \[1\], not a dictionary"),
        (changed_state("exp_avg_sq", torch.full((4,), -1.0)), "exp_avg_sq contains negative values"),
        (changed_state("step", torch.tensor(-3.0)), "step contains negative values"),
        (changed_state("step", torch.tensor(float("inf"))), "step contains non-finite values"),
        (changed_state("step", 3), None),  # as older versions of torch have it
        (changed_state("step", "x"), "step is x, not a tensor"),
        (changed_state("exp_avg", torch.zeros(1).expand(10**12)), "exp_avg has the shape 1000000000000, not 4"),
    ],
)
def test_changes(change, message):
    state = copy.deepcopy(trained("Adam", amsgrad=True).state_dict())
    counts = count_states([state])
    change(state)
    _, optimizer = build("Adam", amsgrad=True)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check(state, optimizer, counts=counts)


@pytest.mark.parametrize("counts", [None, "x", [], [torch.zeros(3)], ["x"], [[1]]])
def test_numbers_of_states_that_are_none(counts):
    check(trained("SGD", momentum=0.9).state_dict(), build("SGD", momentum=0.9)[1], counts=counts)


def test_the_number_of_optimizers():
    with pytest.raises(ValueError, match="states of 0 optimizers, and there are 1"):
        check_optimizer_states([], [build("SGD")[1]], same_settings=True, steps=0)


def test_other_settings_are_allowed_where_the_model_does_not_ask_for_the_same():
    state = trained("SGD", momentum=0.9).state_dict()
    check(state, build("SGD", momentum=0.9, weight_decay=0.1)[1], same_settings=False)
    # A whole number by chance: 0 is the default of the weight decay.
    state = trained("SGD", momentum=0.9, weight_decay=0.1).state_dict()
    check(state, build("SGD", momentum=0.9)[1], same_settings=False)


SCHEDULES = {
    "MultiStepLR": {"milestones": [3, 5]}, "StepLR": {"step_size": 3}, "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 5}, "CosineAnnealingWarmRestarts": {"T_0": 3}, "LinearLR": {}, "ConstantLR": {},
    "PolynomialLR": {}, "OneCycleLR": {"max_lr": 0.1, "total_steps": 10}, "LambdaLR": {"lr_lambda": lambda step: 0.9},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1}, "ReduceLROnPlateau": {},
}  # fmt: skip


def schedule(name, steps=0):
    optimizer = trained("SGD", momentum=0.9)
    made = getattr(lr_scheduler, name)(optimizer, **SCHEDULES[name])
    for _ in range(steps):
        made.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    return made


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_of_torch_takes_its_own_state(name):
    stepped = schedule(name, steps=4)
    state = copy.deepcopy(stepped.state_dict())
    check_schedule_states([state], [schedule(name)], same_settings=True)
    check_rates([state], [stepped.optimizer.state_dict()])


def test_schedules_of_schedules():
    def build_one(steps):
        optimizer = trained("SGD")
        parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        made = lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
        for _ in range(steps):
            made.step()
        return made

    state = copy.deepcopy(build_one(4).state_dict())
    check_schedule_states([state], [build_one(0)], same_settings=True)
    state["_schedulers"][1]["gamma"] = 5.0
    with pytest.raises(ValueError, match=r"_schedulers\[1\]\.gamma is 5\.0, and the settings beside it say 0\.9"):
        check_schedule_states([state], [build_one(0)], same_settings=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"get_lr": [1]}, r"lr_schedulers\[0\]\.get_lr is not an entry of such a schedule"),
        ({"optimizer": "x"}, "optimizer is not an entry"),
        ({"verbose": False}, None),  # of earlier versions of torch
        ({"gamma": 5.0}, "gamma is 5.0, and the settings beside it say 0.1"),
        ({"gamma": "x"}, "gamma is x, not a number"),
        ({"milestones": {6: 1}}, "milestones is {6: 1}, and the settings beside it say"),
        ({"milestones": [6]}, "milestones is .*, not a dictionary"),
        ({"last_epoch": -3}, "last_epoch is -3, and cannot be negative"),
        ({"last_epoch": "x"}, "last_epoch is x, not a whole number"),
        ({"_last_lr": [0.1]}, "_last_lr has 1 learning rates, not 2"),
        ({"_last_lr": [0.1, "x"]}, r"_last_lr\[1\] is x, not a number"),
        ({"base_lrs": [0.1, 9.0]}, "base_lrs is .*, and the settings beside it say"),
        ({"last_epoch": None}, "last_epoch is None, not a whole number"),
    ],
)
def test_changes_of_a_schedule(change, message):
    state = {**copy.deepcopy(schedule("MultiStepLR", steps=4).state_dict()), **change}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_schedule_states([state], [schedule("MultiStepLR")], same_settings=True)


def test_a_schedule_that_is_not_there():
    with pytest.raises(ValueError, match="states of 0 schedules, and there are 1"):
        check_schedule_states([], [schedule("StepLR")], same_settings=True)
    state = schedule("StepLR").state_dict()
    del state["last_epoch"]
    with pytest.raises(ValueError, match=r"lr_schedulers\[0\] has no last_epoch"):
        check_schedule_states([state], [schedule("StepLR")], same_settings=True)


def test_a_learning_rate_that_the_schedule_has_not_set():
    made = schedule("MultiStepLR", steps=4)
    state = copy.deepcopy(made.optimizer.state_dict())
    state["param_groups"][1]["lr"] = 7.0
    with pytest.raises(ValueError, match=r"param_groups\[1\]\.lr is 7\.0, and the schedule has set 0\.00"):
        check_rates([made.state_dict()], [state])
