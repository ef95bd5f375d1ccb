import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.train import Checkpoints, TrainState, device_mesh, load_variables

# Reads that orbax leaves behind when another one fails may end, and complain, after the error has been raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TX = optax.adam(1e-3)
CONFIG = {"seed": 0, "model": "Tiny(features=4)", "batch": [2, 3]}


def state_of(step, *, width=5, dtype=jnp.float32, seed=0, extra=()):
    rng = np.random.default_rng(seed + step)
    params = {"w": jnp.asarray(rng.normal(size=(7, width)), dtype), "half": jnp.ones(3, jnp.bfloat16) * step}
    keys = {"key": jax.random.key(step), "raw": jax.random.key_data(jax.random.key(step))}
    opt_state = TX.init(params), keys, *extra
    return TrainState(jnp.int32(step), params, {}, opt_state, {"loss": jnp.float32(step)}, jnp.int32(-1))


def shapes(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save(folder, *steps, keep=2, accuracies=()):
    """Save states; the accuracy on validation data after each step, if any, goes into the history."""
    with Checkpoints(folder, keep) as checkpoints:
        for number, step in enumerate(steps, 1):
            history = [{"loss": 0.1 + step}]
            for past, accuracy in zip(steps[:number], accuracies, strict=False):
                history.append({"step": past, "val_accuracy": accuracy})
            checkpoints.save(state_of(step), {"fingerprint": CONFIG, "history": history})


def raises(folder, message, target=None, fingerprint=CONFIG, **options):
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(shapes(state_of(0)) if target is None else target, fingerprint=fingerprint, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_state_comes_back_bit_for_bit_with_its_meta_keys_and_sharding(tmp_path):
    save(tmp_path, 3, 5, 7)
    replicated = NamedSharding(device_mesh(), P())
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [7, 5]
        state, meta, errors = checkpoints.restore(shapes(state_of(0), replicated), fingerprint=CONFIG)
    assert_same(state, state_of(7))
    assert all(leaf.sharding.is_equivalent_to(replicated, leaf.ndim) for leaf in jax.tree.leaves(state))
    assert (meta["step"], meta["history"], errors) == (7, [{"loss": 7.1}], [])


def test_saving_returns_before_it_is_done_and_the_state_may_be_donated(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        state = state_of(4)
        checkpoints.save(state, {})
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(state.params)
        with pytest.raises(ValueError, match="4 already exists"):
            checkpoints.save(state_of(4), {})
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(shapes(state_of(0)))[0], state_of(4))


def test_the_first_of_the_best_epochs_is_kept_beside_the_last_ones(tmp_path):
    steps, accuracies = (1, 2, 3, 4, 5, 6), (0.1, 0.5, 0.7, 0.7, 0.2, 0.3)
    for first, last in ((0, 2), (2, 6)):  # opened twice, as a resumed run does
        with Checkpoints(tmp_path, 2) as checkpoints:
            for number in range(first, last):
                history = [
                    {"step": step, "val_accuracy": accuracy}
                    for step, accuracy in zip(steps[: number + 1], accuracies, strict=False)
                ]
                checkpoints.save(state_of(steps[number]), {"history": history})
    target = shapes(state_of(0))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [6, 5, 3]
        assert_same(checkpoints.restore(target, which="best")[0], state_of(3))
        assert_same(checkpoints.restore(target)[0], state_of(6))
    for step in (6, 5):  # what remains is a checkpoint like any other, and the best one
        shutil.rmtree(tmp_path / f"checkpoints/{step}")
    with Checkpoints(tmp_path) as checkpoints:
        for which in ("last", "best"):
            assert_same(checkpoints.restore(target, which=which)[0], state_of(3))
    save(tmp_path / "gone", 1, 2, 3, keep=1, accuracies=(0.9, 0.2, 0.3))
    shutil.rmtree(tmp_path / "gone/checkpoints/1")
    raises(tmp_path / "gone", "no best checkpoint .*: step 1 is missing", which="best")
    save(tmp_path / "none", 1)
    raises(tmp_path / "none", "no best checkpoint .* validation", which="best")


def test_no_checkpoint_is_none_and_newer_ones_can_be_deleted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes(state_of(0))) is None
    save(tmp_path, 1, 2, 3, keep=3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.delete_after(1)
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b", "all*", "why?"])
def test_a_path_that_orbax_takes_for_a_pattern_raises_before_training(tmp_path, name):
    with pytest.raises(ConfigError, match="run_dir"):
        Checkpoints(tmp_path / name)


def test_another_model_type_or_configuration_raises_in_one_line(tmp_path):
    save(tmp_path, 3)
    wide = shapes(state_of(0, width=6))
    raises(tmp_path, r"another model: .*\['w'\] is float32 \(7, 5\) in it, expected float32 \(7, 6\)", wide)
    half = shapes(state_of(0, dtype=jnp.float16))
    raises(tmp_path, r"another model: .*is float32 \(7, 5\) in it, expected float16 \(7, 5\)", half)
    more = shapes(state_of(0, extra=({"new": jnp.ones(2)},)))
    raises(
        tmp_path, r"another model: .*\['new'\] is no such leaf in it, expected float32 \(2,\)", more, allow_older=True
    )
    raises(
        tmp_path, "another configuration: seed was 0, now it is 1", fingerprint={**CONFIG, "seed": 1}, allow_older=True
    )
    long = {**CONFIG, "model": "x" * 200 + "Tiny(features=8)" + "x" * 200}
    raises(tmp_path, r"configuration: model was Tiny\(features=4\), now it is ...x{80}\.\.\.", fingerprint=long)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes(state_of(0)), fingerprint=json.loads(json.dumps(CONFIG))) is not None


def test_an_older_one_is_used_only_on_request_and_said(tmp_path):
    save(tmp_path, 3, 5)
    for path in (tmp_path / "checkpoints/5").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-7])
    raises(tmp_path, r"checkpoints/5 is damaged \(.*--allow-older` \(allow_older=True\) uses the last intact one")
    with Checkpoints(tmp_path) as checkpoints:
        state, _, errors = checkpoints.restore(shapes(state_of(0)), fingerprint=CONFIG, allow_older=True)
    assert_same(state, state_of(3))
    assert len(errors) == 1
    assert "checkpoints/5 is damaged" in errors[0]
    shutil.rmtree(tmp_path / "checkpoints/3/meta")
    raises(tmp_path, r"checkpoints/5 is damaged \(.*No older one is intact", allow_older=True)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "damage",
    ["truncate", pytest.param("remove", marks=pytest.mark.slow), pytest.param("empty", marks=pytest.mark.slow)],
)
def test_truncated_and_missing_files_never_restore_another_state(tmp_path, damage):
    save(tmp_path, 3)
    folder, noticed = tmp_path / "checkpoints/3", 0
    for path in files_of(folder):
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2])
        noticed += not restores_the_same(tmp_path)
        path.write_bytes(content)
    assert noticed >= 4
    assert restores_the_same(tmp_path)


def restores_the_same(run_dir):
    """True if the very state comes back, False if it raises in one line."""
    with Checkpoints(run_dir) as checkpoints:
        try:
            state, meta, _ = checkpoints.restore(shapes(state_of(0)), fingerprint=CONFIG)
        except CheckpointError as error:
            return "\n" in str(error)
    assert_same(state, state_of(3))
    assert (meta["step"], meta["history"], meta["fingerprint"]) == (3, [{"loss": 3.1}], CONFIG)
    return True


def flip_and_restore(tmp_path, count, seed):
    rng = np.random.default_rng(seed)
    files = [path for path in files_of(tmp_path / "checkpoints/3") if path.stat().st_size]
    outcomes = {}
    for number in range(count):
        path = files[number % len(files)]
        content = bytearray(path.read_bytes())
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        outcomes.setdefault("/".join(path.parts[-2:]), []).append(restores_the_same(tmp_path))
        path.write_bytes(content)
    return outcomes


def test_a_flipped_bit_anywhere_never_restores_another_state(tmp_path):
    save(tmp_path, 3)
    outcomes = flip_and_restore(tmp_path, 24, seed=0)
    assert not any(outcomes["meta/metadata"])
    assert not all(same for results in outcomes.values() for same in results)


@pytest.mark.slow
def test_many_flipped_bits_never_restore_another_state(tmp_path):
    save(tmp_path, 3)
    flip_and_restore(tmp_path, 300, seed=1)


def test_a_foreign_array_is_noticed_by_its_checksum(tmp_path):
    """A checkpoint whose arrays are another run's, with its own meta: well-formed, and foreign."""
    save(tmp_path / "a", 3)
    with Checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(state_of(3, seed=9), {"fingerprint": CONFIG})
    for item in ("variables", "training"):
        target = tmp_path / "a/checkpoints/3" / item
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "b/checkpoints/3" / item, target)
    raises(tmp_path / "a", r"the checksum of \['variables'\]\['params'\]\['w'\] does not match")


def test_the_seal_covers_history_configuration_and_step(tmp_path):
    save(tmp_path, 3)
    folder = tmp_path / "checkpoints/3"
    (path,) = (file for file in files_of(folder / "meta") if b"crc32" in file.read_bytes())
    meta = json.loads(path.read_text())
    for change in ({"history": []}, {"step": 4}, {"fingerprint": {}}, {"crc32": {}}, {"seal": 0}):
        path.write_text(json.dumps(meta | change))
        raises(tmp_path, r"damaged \(meta: its checksum does not match\)")
    path.write_text(json.dumps(meta))
    folder.rename(folder.with_name("4"))
    raises(tmp_path, r"checkpoints/4 is damaged \(meta")


def test_load_variables_notices_damage_and_a_foreign_model(tmp_path, tiny):
    model = tiny()
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 4, 4, 1)))
    state = state_of(6).replace(params=variables["params"], batch_stats=variables["batch_stats"])
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_variables(tmp_path, model, (4, 4, 1))
    for step in (5, 6):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state.replace(step=jnp.int32(step)), {"fingerprint": {"words": ["01", "10"], "epochs": 3}})
    assert_same(load_variables(tmp_path, model, (4, 4, 1)), dict(variables))
    assert_same(load_variables(tmp_path, model, (4, 4, 1), fingerprint={"words": ["01", "10"]}), dict(variables))
    with pytest.raises(CheckpointError, match=r"another configuration: words was \['01', '10'\], now it is \['11'\]"):
        load_variables(tmp_path, model, (4, 4, 1), fingerprint={"words": ["11"]})
    assert_same(load_variables(tmp_path, tiny(dtype=jnp.bfloat16), (1, 4, 4, 1)), dict(variables))
    with pytest.raises(CheckpointError, match=r"another model: .* \(4,\) in it, expected float32 \(8,\)"):
        load_variables(tmp_path, tiny(features=8), (4, 4, 1))
    with pytest.raises(CheckpointError, match=r"BatchNorm_0.* in it, expected no such leaf"):
        load_variables(tmp_path, tiny(norm=False), (4, 4, 1))
    for path in files_of(tmp_path / "checkpoints/6/variables/d"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="6 is damaged"):
        load_variables(tmp_path, model, (4, 4, 1))
    assert_same(load_variables(tmp_path, model, (4, 4, 1), allow_older=True), dict(variables))


@pytest.mark.parametrize("left", ["", "variables/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_an_old_checkpoint_half_deleted_by_a_kill_does_not_stand_in_the_way(tmp_path, left):
    save(tmp_path, 3, 5)
    for path in files_of(tmp_path / "checkpoints/3"):
        if not str(path).endswith(left or "nothing"):
            path.unlink()
    (tmp_path / "checkpoints/7.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(shapes(state_of(0)), fingerprint=CONFIG)[0], state_of(5))
        checkpoints.save(state_of(7), {"fingerprint": CONFIG})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "7"]
