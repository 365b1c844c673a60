"""Networks on images: what they start from, and the images that they are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from undertow.claims import Networks, convolutional, language_models, networks, perceptrons
from undertow.data import Images, Text
from undertow.train import Member

pytestmark = pytest.mark.fast
IMAGES = Images(train_size=40)


def made(seeds: tuple[int, ...], init_seeds: list[int] | None = None, **more: Any) -> Networks:
    members = [Member(seed, 0.1) for seed in seeds]
    options = {"batch_size": 8, "path": "fused", "init_seeds": init_seeds}
    return perceptrons(IMAGES, (5,), members, **(options | more))


def first_weights(own: Networks) -> torch.Tensor:
    return own.ensemble.parameters()["1.weight"]


def test_initial_weights_are_those_of_the_seeds_that_are_given_for_them() -> None:
    own, shared = made((1, 2)), made((1, 2), [7, 7])
    assert not torch.equal(*first_weights(own))
    assert torch.equal(*first_weights(shared))
    assert torch.equal(first_weights(shared)[0], first_weights(made((3,), [7]))[0])
    shared.ensemble.train(5)  # in their own order of the data
    assert not torch.equal(*first_weights(shared))


def test_images_may_be_loaded_already() -> None:
    whole = IMAGES.load(seed=1)
    loaded = replace(whole, test_inputs=whole.test_inputs[:3], test_targets=whole.test_targets[:3])
    members = [Member(seed, 0.1) for seed in (1, 2)]
    given = perceptrons(loaded, (5,), members, batch_size=8, path="fused")
    assert given.test[0].shape == (2, 3, 64)
    assert torch.equal(given.inputs[0], made((1,)).inputs[0])
    assert torch.equal(*given.inputs)  # the same for all
    for more in ({"data_seeds": [1, 2]}, {"label_noise": 0.1}, {"test_size": 10}):
        with pytest.raises(ValueError, match="give Images rather than a Dataset"):
            perceptrons(loaded, (5,), members, batch_size=8, **more)


@pytest.mark.parametrize("data_seeds", [None, [5, 5, 6]])
def test_each_member_sees_what_its_data_seed_draws(data_seeds: list[int] | None) -> None:
    seeds = (1, 2, 3)
    found = made(seeds, data_seeds=data_seeds, label_noise=0.5, test_size=30)
    for place, seed in enumerate(data_seeds or seeds):
        own = IMAGES.load(seed=seed, label_noise=0.5, test_size=30)
        inputs, targets = found.data_of(place)
        assert torch.equal(inputs, own.train_inputs.flatten(1))
        assert torch.equal(targets, own.train_targets)
        assert torch.equal(found.inputs[place], inputs)
        assert torch.equal(found.targets[place], targets)
        assert torch.equal(found.test[0][place], own.test_inputs.flatten(1))
        assert torch.equal(found.test[1][place], own.test_targets)


def test_a_member_does_not_depend_on_its_neighbours_or_on_their_images() -> None:
    together, alone = made((1, 2, 3), path="loop"), made((2,), path="loop")
    for each in (together, alone):
        each.ensemble.train(20)
    assert torch.equal(first_weights(together)[1], first_weights(alone)[0])
    assert torch.equal(together.fit().loss[1:2], alone.fit().loss)
    assert torch.equal(together.tested().accuracy[1:2], alone.tested().accuracy)


def test_an_image_that_members_share_is_held_once() -> None:
    one, several = made((1,)), made((1, 1, 1))
    assert len(one.pool[0]) == len(several.pool[0]) == 40 + 360


def test_there_is_one_data_seed_for_each() -> None:
    with pytest.raises(ValueError, match="one for each of the 2 members, got 3"):
        made((1, 2), data_seeds=[1, 2, 3])


def test_they_are_tested_on_the_images_that_were_kept_back() -> None:
    found = made((1,))
    found.ensemble.train(50)
    (inputs,), (targets,) = found.test
    with torch.no_grad():
        kept_back = torch.nn.functional.cross_entropy(found.ensemble.module(0)(inputs), targets)
    assert float(found.tested().loss[0]) == pytest.approx(float(kept_back), rel=1e-5)
    assert float(found.fit().loss[0]) == pytest.approx(float(found.objective(0).value()), rel=1e-5)
    assert float(found.fit().loss[0]) < float(found.tested().loss[0])


def test_images_may_keep_their_shape_and_be_of_a_few_classes() -> None:
    shapes = []

    def model(shape: tuple[int, ...], classes: int) -> nn.Module:
        shapes.append((shape, classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    members = [Member(seed, 0.1) for seed in (1, 2)]
    found = networks(IMAGES, model, members, flat=False, classes=3, batch_size=4, path="fused")
    assert shapes == [((1, 8, 8), 3)]
    for place, seed in enumerate((1, 2)):
        whole = IMAGES.load(seed=seed)
        chosen = whole.train_targets < 3
        inputs, targets = found.data_of(place)
        assert torch.equal(inputs, whole.train_inputs[chosen])
        assert torch.equal(targets, whole.train_targets[chosen])
        assert torch.equal(found.test[1][place], whole.test_targets[whole.test_targets < 3])


def test_draws_are_one_for_each_member() -> None:
    drawn = IMAGES.load().draws([7, 8], 2)
    members = [Member(seed, 0.1) for seed in (1, 2)]
    found = perceptrons(drawn, (5,), members, batch_size=8)
    assert torch.equal(found.inputs[1], drawn.inputs[drawn.train[1]].flatten(1))
    assert torch.equal(found.test[1], drawn.targets[drawn.test])
    with pytest.raises(ValueError, match="a draw for each of the 1 members, got 2 draws"):
        perceptrons(drawn, (5,), members[:1], batch_size=8)
    with pytest.raises(ValueError, match="give Images rather than a Draws"):
        perceptrons(drawn, (5,), members, batch_size=8, data_seeds=[1, 2])


def test_the_square_loss_is_of_one_hot_labels_and_knows_what_is_right() -> None:
    found = made((1, 2), loss="square")
    found.ensemble.train(20)
    for member, fit in enumerate(found.fit().loss.tolist()):
        inputs, labels = found.data_of(member)
        outputs = found.ensemble.module(member)(inputs).detach()
        ideal = nn.functional.one_hot(labels, 10)
        assert fit == pytest.approx(float((outputs - ideal).square().mean()))
        right = (outputs.argmax(1) == labels).double().mean()
        assert float(found.fit().accuracy[member]) == pytest.approx(float(right))
    assert found.tested().num_samples == 360
    with pytest.raises(ValueError, match="loss must be one of cross-entropy, square, got 'hinge'"):
        made((1,), loss="hinge")


def test_language_models_are_trained_and_tested_on_windows_of_their_own() -> None:
    text = Text(windows=20, context=4)
    members = [Member(seed, 0.1) for seed in (1, 2, 1)]
    first = language_models(text, members, init_seeds=[5, 5, 6], test_size=8, batch_size=4)
    loaded = text.load(seed=2, test_size=8)
    assert torch.equal(first.inputs[1], loaded.train_inputs)
    assert torch.equal(first.test[1][1], loaded.test_targets)
    assert torch.equal(first.inputs[0], first.inputs[2])
    starts = first.fit().loss.tolist()
    assert starts[0] != starts[2]
    first.ensemble.train(5)
    own: dict[str, Any] = {"data_seeds": [1, 2, 1], "test_size": 8, "batch_size": 4}
    again = language_models(text, members, after=first, **own)
    assert again.tested().loss.tolist() == pytest.approx(first.tested().loss.tolist())
    other = language_models(Text("python-code", windows=20, context=4), members, after=first, **own)
    assert other.characters == first.characters == loaded.characters


def test_convolutional_networks_start_from_their_own_seeds() -> None:
    members = [Member(seed, 0.1) for seed in (1, 2)]
    seen: dict[str, Any] = {"data_seeds": [1, 1], "batch_size": 8}
    alike = convolutional(IMAGES, (2, 3), members, init_seeds=[7, 7], **seen)
    own = convolutional(IMAGES, (2, 3), members, **seen)
    assert alike.inputs.shape == (2, 40, 1, 8, 8)
    assert torch.equal(*alike.fit().loss)
    assert not torch.equal(*own.fit().loss)


def test_what_has_diverged_is_not_measured() -> None:
    members = [Member(1, 0.1), Member(2, 1e30)]
    own = perceptrons(IMAGES, (5,), members, batch_size=8, path="fused")
    assert None not in own.measured(lambda objective: float(objective.value()))
    assert own.measured(lambda _: 2.0, only=[1]) == [None, 2.0]
    own.ensemble.train(20)
    known, lost = own.measured(lambda objective: float(objective.value()))
    assert known == pytest.approx(own.fit().loss[0].item(), rel=1e-5)
    assert lost is None
    results = own.results()
    assert results["diverged"] == [False, True]
    assert float(results["log_loss"][0].exp()) == pytest.approx(known, rel=1e-5)


def test_losses_are_read_on_the_way_and_the_path_is_the_same() -> None:
    read, straight = made((1, 2)), made((1, 2))
    losses = read.losses_at([0, 4, 10])
    straight.ensemble.train(10)
    assert losses.shape == (3, 2)
    assert torch.equal(losses[-1], straight.fit().loss)
    assert torch.equal(losses[0], made((1, 2)).fit().loss)
    few = straight.losses_at([10], shown=5)
    first = straight.ensemble.evaluate(*straight.pool, samples=straight.train[:, :5])
    assert torch.equal(few[0], first.loss)


def test_smooth_labels_are_the_mean_of_flipped_ones() -> None:
    found = made((1,), smoothing=0.2)
    inputs, targets = found.data_of(0)
    outputs = found.ensemble.predict(inputs)[0]
    every = torch.stack(
        [nn.functional.cross_entropy(outputs, torch.full_like(targets, k)) for k in range(10)]
    )
    plain = nn.functional.cross_entropy(outputs, targets)
    mean = 0.8 * plain + 0.2 * every.mean()
    assert float(found.objective(0).value()) == pytest.approx(float(mean), rel=1e-5)
    assert float(found.objective(0, 0.0).value()) == pytest.approx(float(plain), rel=1e-5)
    assert float(found.fit().loss) == pytest.approx(float(mean), rel=1e-5)
    assert float(made((1,)).objective(0, 0.2).value()) == pytest.approx(float(mean), rel=1e-5)
