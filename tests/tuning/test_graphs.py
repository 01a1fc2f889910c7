"""CUDA graphs against the same fits without them."""

import math
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from fitting import METHODS, same_weights, small_fit, small_recipe
from transformers import AutoModelForCausalLM, LlavaConfig, MistralConfig, MistralForCausalLM

from calibtune.data.tokens import common_width
from calibtune.errors import UserError, WorkFailed
from calibtune.tuning import graphs as fit_graphs
from calibtune.tuning import inputs as fit_inputs
from calibtune.tuning import trainer
from calibtune.tuning.graphs import (
    CAUSAL,
    Recording,
    StepGraphs,
    attention_configs,
    causal_attention,
    graphs_serve,
)
from calibtune.tuning.trainer import CalibrationTrainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.accelerator
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("label-smoothing", {}),
        ("cft", {}),
        ("rcft", {}),
        ("rcft", {"e_step": "epoch"}),
    ],
)
def test_cuda_graph_losses_and_gradients_equal_the_plain_pass(
    model, tmp_path, mirror, method, changes, precision, monkeypatch
):
    seen = []
    norm = CalibrationTrainer._get_grad_norm

    def noted(self, *args, **options):
        seen.append((float(sum(self._losses)), float(norm(self, *args, **options))))
        return torch.tensor(seen[-1][1])

    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", noted)
    options = {
        "cuda_graphs": False,
        "device": "cuda",
        "precision": precision,
        "epochs": 2,
        "batch_size": 2,
        "gradient_accumulation": 2,
    }
    options |= changes
    small_fit(model, tmp_path / "plain", method, **options)
    plain = list(seen)
    small_fit(model, tmp_path / "graphs", method, **options | {"cuda_graphs": True})
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert torch.allclose(torch.tensor(seen[len(plain) :]), torch.tensor(plain), rtol=tolerance)


@pytest.mark.accelerator
@needs_gpu
def test_dropout_draws_the_same_numbers_in_a_graph_as_without_one(model, tmp_path, mirror, caplog):
    small_fit(model, tmp_path / "out", "cft", device="cuda", cuda_graphs=True, lora_dropout=0.5, learning_rate=1e-2)
    assert "without CUDA graphs" not in caplog.text


def masks_seen(monkeypatch, model, ids):
    """Return whether each layer's attention got a mask, and the logits, as during graph capture."""
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(*args, **options):
        seen.append(options.get("attn_mask") is not None)
        return attention(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        return seen, model(ids, use_cache=False).logits


def test_causal_attention_makes_no_mask_during_capture(model, monkeypatch):
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(300, 312)[None].repeat(2, 1)
    usual, _ = masks_seen(monkeypatch, loaded, ids)
    with causal_attention(attention_configs(loaded)):
        ours, logits = masks_seen(monkeypatch, loaded, ids)
    assert usual == [True, True]
    assert ours == [False, False]
    assert torch.allclose(logits, loaded(ids, use_cache=False).logits, atol=1e-6)
    assert loaded.config._attn_implementation == "sdpa"


def test_cuda_graphs_refuse_a_window_shorter_than_the_prompt():
    shape = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    windowed = MistralForCausalLM(MistralConfig(**shape, sliding_window=4))
    with pytest.raises(UserError, match="the model attends over 4 tokens and a prompt has 5"):
        StepGraphs(windowed, lambda batch: (), longest=5)


class FakeGraph:
    """Replace a CUDA graph where there is no GPU."""

    def __init__(self, replay):
        self.replay = replay


class Passes:
    """Run a small model's passes as graphs, recorded where there is no GPU; the recordings say what they were.

    ``limit``: passes of more tokens take longer to compute than to launch.
    """

    def __init__(self, model, monkeypatch, factor=1.0, limit=math.inf, measured=True):
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.graphs = StepGraphs(self.model, self.loss, longest=20)
        self.graphs._record, self.graphs._wait = self.record, self.wait
        self.factor, self.limit, self.error = factor, limit, None
        self.plain, self.replayed, self.waits, self.seconds = [], [], [], 0
        monkeypatch.setattr(fit_graphs, "time", SimpleNamespace(perf_counter=lambda: self.seconds))
        if measured:
            self.graphs.warm, self.graphs.launching = True, 20

    def wait(self):
        self.waits += self.plain[-1:]
        if self.plain and self.plain[-1] > self.limit:
            self.seconds += 1

    def loss(self, batch):
        self.plain.append(batch["input_ids"].shape[1])
        self.seconds += 1
        return (self.model(batch["input_ids"], use_cache=False).logits.pow(2).mean(),)

    def record(self, batch):
        if self.error:
            raise self.error

        def replay():
            self.graphs._pass(batch)
            self.plain.pop()
            self.graphs.gradient.mul_(self.factor)
            self.replayed.append(batch["input_ids"].shape[1])

        return Recording(FakeGraph(replay), batch, (torch.tensor(7.0),))

    def run(self, length):
        """Return a pass's loss, and whether its gradients are those of a pass by itself."""
        batch = {"input_ids": torch.arange(300, 300 + length)[None]}
        self.model.zero_grad()
        self.model(batch["input_ids"], use_cache=False).logits.pow(2).mean().backward()
        usual = [parameter.grad.clone() for parameter in self.model.parameters()]
        self.model.zero_grad()
        (loss,) = self.graphs.run(batch)
        pairs = zip(self.graphs.gradients, usual, strict=True)
        return float(loss), all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in pairs)


def test_the_first_shapes_are_run_without_a_graph_too_and_later_ones_are_replayed_at_once(model, monkeypatch):
    passes = Passes(model, monkeypatch)
    lengths = [10, 11, 10, 12, 13, 13, 14]
    found = [passes.run(length) for length in lengths]
    assert all(right for _, right in found)
    assert passes.plain == [10, 11, 12]
    assert [loss == 7 for loss, _ in found] == [False, False, True, False, True, True, True]
    assert passes.replayed == [10, 11, 10, 12, 13, 13, 14]


def test_a_pass_longer_than_all_before_is_measured_and_recorded_when_met_again(model, monkeypatch):
    passes = Passes(model, monkeypatch, measured=False)
    lengths = [14, 14, 14, 10, 15, 15]
    found = [passes.run(length) for length in lengths]
    assert all(right for _, right in found)
    assert passes.waits == [14, 14, 10, 15]  # before and after the second and the fifth
    assert passes.plain == [14, 14, 14, 10, 15, 15]
    assert passes.replayed == [14, 10, 15]


def test_passes_that_take_longer_to_compute_are_measured_once_and_never_recorded(model, monkeypatch):
    passes = Passes(model, monkeypatch, limit=12, measured=False)
    lengths = [10, 10, 14, 14, 15, 13, 13, 12, 14]
    found = [passes.run(length) for length in lengths]
    assert all(right for _, right in found)
    assert passes.waits == [10, 10, 10, 14, 15, 13, 13, 12]  # before and after 10, 14, 13 and 12
    assert passes.plain == lengths
    assert not passes.replayed


@pytest.mark.parametrize(("factor", "kept"), [(1.04, True), (1.2, False), (0.0, False), (math.nan, False)])
def test_a_cuda_graph_with_wrong_gradients_ends_recording(model, factor, kept, caplog, monkeypatch):
    passes = Passes(model, monkeypatch, factor)
    assert passes.run(10)[1]  # the pass without a graph counts
    assert (passes.run(10)[0] == 7) == kept
    assert passes.graphs.records == kept
    assert ("without CUDA graphs: one of 1x10 tokens gave wrong gradients" in caplog.text) != kept


@pytest.mark.parametrize(("known", "usual"), [(True, CAUSAL), (False, "sdpa")])
def test_recordings_are_compared_with_the_models_own_attention(model, monkeypatch, known, usual):
    """Doge, for example, adds numbers of its own through the mask, so that a pass without one would be wrong."""
    monkeypatch.setattr(fit_graphs, "DENSE", fit_graphs.DENSE if known else ())
    passes, seen = Passes(model, monkeypatch), []
    inner = passes.loss

    def noted(batch):
        seen.append(passes.model.config._attn_implementation)
        return inner(batch)

    passes.graphs.loss = noted
    passes.graphs._record = lambda batch: Recording(FakeGraph(lambda: passes.graphs._pass(batch, [])), batch, ())
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "graph", lambda *args, **options: nullcontext())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: None)
        StepGraphs._record(passes.graphs, {"input_ids": torch.arange(300, 310)[None]})
    assert seen == [CAUSAL]
    passes.run(10)  # compared
    assert seen[1] == "sdpa"
    passes.graphs.records = False
    passes.run(11)
    assert seen[-1] == usual
    assert passes.model.config._attn_implementation == "sdpa"


def test_causal_attention_leaves_configurations_below_as_they_are():
    config = LlavaConfig(attn_implementation={"": "sdpa", "text_config": "sdpa", "vision_config": "eager"})
    with causal_attention([config]):
        assert config._attn_implementation == CAUSAL
        assert config.vision_config._attn_implementation == "eager"
    assert config._attn_implementation == config.text_config._attn_implementation == "sdpa"
    assert config.vision_config._attn_implementation == "eager"


def test_a_pass_that_is_not_finite_is_no_fault_of_its_recording(model, monkeypatch, caplog):
    passes = Passes(model, monkeypatch)
    inner = passes.loss
    passes.graphs.loss = lambda batch: (inner(batch)[0] * math.nan,)
    passes.graphs.run({"input_ids": torch.arange(300, 310)[None]})
    assert passes.graphs.records
    assert not caplog.text


@pytest.mark.parametrize("shapes", [1, 4])
def test_a_pass_without_memory_for_its_recording_ends_recording_and_counts_once(model, shapes, caplog, monkeypatch):
    passes = Passes(model, monkeypatch)
    for length in range(10, 10 + shapes):
        passes.run(length)
    passes.error = torch.OutOfMemoryError("CUDA out of memory")
    for length in (19, 19, 10):
        loss, right = passes.run(length)
        assert right
        assert loss != 7
    assert not passes.graphs.recordings
    assert caplog.text.count("goes on without CUDA graphs: the GPU's memory does not hold them") == 1


def test_a_pass_that_cannot_be_recorded_ends_the_fit_with_the_way_on(model, monkeypatch):
    passes = Passes(model, monkeypatch)
    passes.error = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(
        WorkFailed, match=r"when stream is capturing\); run the same command with --resume --no-cuda-gr"
    ):
        passes.run(10)


class Gpu:
    type = "cuda"


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"lora_dropout": 0.1}, True),
        ({"gradient_checkpointing": True}, False),
        ({"tuning": "full"}, False),
        ({"trust_remote_code": True}, False),
    ],
)
def test_gpu_fits_take_graphs_by_default_where_a_step_can_be_recorded(model, changes, taken):
    recipe = small_recipe(model, "cft", **changes)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert not graphs_serve(loaded, recipe)  # on the CPU
    weight = SimpleNamespace(device=Gpu)
    on_gpu = SimpleNamespace(config=loaded.config, parameters=lambda: iter([weight]))
    assert graphs_serve(on_gpu, recipe) == taken
    loaded.config.model_type = "mixtral"
    assert not graphs_serve(on_gpu, recipe)


@pytest.mark.parametrize(
    ("split", "compiled", "window", "taken"),
    [
        ("", False, 9, True),
        ("FSDP", False, 9, False),
        ("DEEPSPEED", False, 9, False),
        ("", True, 9, False),
        ("", False, 8, False),
    ],
)
def test_graphs_are_taken_by_default_where_a_process_holds_the_whole_model(monkeypatch, split, compiled, window, taken):
    monkeypatch.setattr(trainer, "graphs_serve", lambda model, recipe: True)
    monkeypatch.setattr(trainer, "shortest_window", lambda model: window)
    if split:
        monkeypatch.setenv(f"ACCELERATE_USE_{split}", "true")
    args = SimpleNamespace(torch_compile=compiled)
    fit = SimpleNamespace(args=args, model=None, recipe=None, _longest=lambda: 9)
    assert CalibrationTrainer._takes_graphs(fit) == taken


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *(pytest.param(m, {}, marks=[pytest.mark.slow] * (m != "cft")) for m in METHODS),
        ("rcft", {"e_step": "epoch"}),
    ],
)
def test_cuda_graph_training_equals_plain_training(model, tmp_path, mirror, monkeypatch, method, changes):
    replays, losses = [], []
    norm = CalibrationTrainer._get_grad_norm

    def noted(self, *args, **options):
        losses.append(float(sum(self._losses)))
        return norm(self, *args, **options)

    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", noted)

    def record(graphs, batch):
        inputs = {name: value.clone() for name, value in batch.items()}
        before = graphs.gradient.clone()
        outputs = graphs._pass(inputs)
        graphs.gradient.copy_(before)

        def replay():
            replays.append(inputs["input_ids"].shape)
            for output, value in zip(outputs, graphs._pass(inputs), strict=True):
                output.copy_(value)

        return Recording(FakeGraph(replay), inputs, outputs)

    monkeypatch.setattr(StepGraphs, "_record", record)
    monkeypatch.setattr(fit_graphs, "LAG", math.inf)  # on the CPU all passes count as slow to launch
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 340)
    options = {"learning_rate": 1e-3, "epochs": 2, "gradient_accumulation": 2, **changes}
    plain = small_fit(model, tmp_path / "plain", method, **options)
    assert not replays
    found = small_fit(model, tmp_path / "graphs", method, cuda_graphs=True, **options)
    assert len(replays) > len(set(replays)) > 1
    assert all(rows * width <= 340 and width == common_width(width) for rows, width in replays)
    assert {rows for rows, _ in replays} == {2}  # batches of four were halved
    assert losses[len(losses) // 2 :] == pytest.approx(losses[: len(losses) // 2], rel=1e-3)
    assert same_weights(tmp_path / "plain", tmp_path / "graphs", rtol=1e-3, atol=1e-5)
    assert found.after == pytest.approx(plain.after, rel=1e-4)


def test_batches_that_are_not_recorded_are_padded_no_further_than_their_longest_prompt(
    model, tmp_path, mirror, monkeypatch
):
    class Long(StepGraphs):
        def __init__(self, *args):
            super().__init__(*args)
            self.computing = 0

        def run(self, batch, few_shapes):
            widths.append((few_shapes, batch["input_ids"].shape[1], int(batch["answer"].max()) + 1))
            return super().run(batch, few_shapes)

    widths = []
    monkeypatch.setattr(trainer, "StepGraphs", Long)
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    small_fit(model, tmp_path / "out", "cft", cuda_graphs=True)
    # The first two batches were made before a pass was measured.
    assert [recorded for recorded, _, _ in widths] == [True, True, False, False]
    assert all(width == (common_width(longest) if recorded else longest) for recorded, width, longest in widths)
    assert any(width != common_width(width) for _, width, _ in widths)


def test_passes_that_are_recorded_are_as_wide_as_those_of_the_other_processes(model, tmp_path, mirror, monkeypatch):
    class Wide(trainer.GroupedOrder):
        def __iter__(self):
            for row in super().__iter__():
                self.longest[row] = 500  # another process's
                yield row

    class Long(StepGraphs):
        def run(self, batch, few_shapes):
            widths.append((few_shapes, batch["input_ids"].shape[1]))
            self.computing = 0
            return self._pass(batch)

    widths = []
    monkeypatch.setattr(trainer, "StepGraphs", Long)
    monkeypatch.setattr(trainer, "GroupedOrder", Wide)
    monkeypatch.setattr(trainer, "most_tokens", lambda rows, batch_size: 10**6)
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    small_fit(model, tmp_path / "out", "cft", cuda_graphs=True)
    assert widths[:2] == [(True, 512), (True, 512)]
    assert all(not few_shapes and width < 200 for few_shapes, width in widths[2:])


@pytest.mark.parametrize("records", [True, False])
def test_batches_are_padded_to_common_widths_as_long_as_passes_are_recorded(
    model, tmp_path, mirror, monkeypatch, records
):
    class Stopped(StepGraphs):
        def run(self, batch, few_shapes):
            self.records = records
            width, longest = batch["input_ids"].shape[1], int(batch["answer"].max()) + 1
            widths.append((few_shapes, width == common_width(longest), width == longest))
            return self._pass(batch)

    widths = []
    monkeypatch.setattr(trainer, "StepGraphs", Stopped)
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    small_fit(model, tmp_path / "out", "cft", cuda_graphs=True)
    assert [few for few, _, _ in widths] == [True, True, records, records]
    assert all(common if few else exact for few, common, exact in widths)
    assert not all(exact for _, _, exact in widths)


def test_all_modules_train_from_the_first_step_of_a_fit_with_graphs(model, tmp_path, mirror, monkeypatch):
    class Watched(StepGraphs):
        def __init__(self, tuned, *args):
            super().__init__(tuned, *args)
            training.append([module.training for module in tuned.modules()])

    training = []
    monkeypatch.setattr(trainer, "StepGraphs", Watched)
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    small_fit(model, tmp_path / "out", "cft", cuda_graphs=True, max_steps=1)
    assert len(training) == 1
    assert all(training[0])


def test_processes_average_the_one_tensor_that_holds_all_gradients(model, tmp_path, mirror, monkeypatch):
    class OneOfTwo(CalibrationTrainer):
        def __init__(self, *args):
            super().__init__(*args)
            self._averages = True
            trained.extend(weight for weight in self.model.parameters() if weight.requires_grad)

    def average(values):
        gradients = [weight.grad for weight in trained]
        averaged.append(
            values.numel() == sum(gradient.numel() for gradient in gradients)
            and all(gradient.untyped_storage().data_ptr() == values.data_ptr() for gradient in gradients)
        )

    trained, averaged = [], []
    monkeypatch.setattr(trainer, "share_weights", lambda weights: None)
    monkeypatch.setattr(trainer, "average", average)
    monkeypatch.setattr(trainer, "CalibrationTrainer", OneOfTwo)
    monkeypatch.setattr(fit_inputs, "check_machine", lambda recipe: None)
    small_fit(model, tmp_path / "out", "cft", cuda_graphs=True, max_steps=2)
    assert averaged == [True, True]


@pytest.mark.accelerator
@needs_gpu
def test_a_step_leaves_no_time_in_which_the_gpu_has_nothing_to_do(model, tmp_path, mirror, monkeypatch):
    step = CalibrationTrainer.training_step

    def watched(self, *args, **options):
        # Three steps in the middle of the second epoch.
        torch.cuda.set_sync_debug_mode("warn" if self.state.global_step in (4, 5, 6) else "default")
        return step(self, *args, **options)

    monkeypatch.setattr(CalibrationTrainer, "training_step", watched)
    monkeypatch.setattr(fit_graphs, "LAG", -1)  # all passes count as slow to compute and none is recorded
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        small_fit(model, tmp_path / "out", "cft", device="cuda", cuda_graphs=True, epochs=5, max_steps=10)
    torch.cuda.set_sync_debug_mode("default")
    places = [f"{wait.filename}:{wait.lineno}" for wait in waits if "a synchronizing" in str(wait.message)]
    assert not places


@pytest.mark.slow
@pytest.mark.parametrize(("method", "e_step"), [*((m, None) for m in METHODS), ("rcft", "epoch")])
def test_unrecorded_graph_step_equals_the_plain_step(model, tmp_path, mirror, method, e_step, monkeypatch):
    class Unrecorded(StepGraphs):
        def run(self, batch, few_shapes):
            assert few_shapes
            width = batch["input_ids"].shape[1]
            assert width == common_width(width)
            assert ("target" in batch) == (method == "rcft")
            return self._pass(batch)

    seen = []
    norm = CalibrationTrainer._get_grad_norm

    def recorded(self, *args, **options):
        losses = float(sum(self._losses))
        seen.append((losses, float(norm(self, *args, **options))))
        return torch.tensor(seen[-1][1])

    monkeypatch.setattr(trainer, "StepGraphs", Unrecorded)
    monkeypatch.setattr("calibtune.tuning.inputs.check_machine", lambda recipe: None)
    monkeypatch.setattr(CalibrationTrainer, "_get_grad_norm", recorded)
    options = {"batch_size": 2, "gradient_accumulation": 2, "epochs": 2} | ({"e_step": e_step} if e_step else {})
    small_fit(model, tmp_path / "plain", method, **options)
    plain = list(seen)
    small_fit(model, tmp_path / "graphs", method, cuda_graphs=True, **options)
    assert torch.allclose(torch.tensor(seen[len(plain) :]), torch.tensor(plain), rtol=1e-3)
    # AdamW makes full steps even from tiny gradients, which are mostly rounding.
    assert same_weights(tmp_path / "plain", tmp_path / "graphs", rtol=1e-3, atol=1e-4)
