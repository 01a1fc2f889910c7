import json

import numpy as np
import pytest
from fitting import same_weights, small_fit, small_recipe

from calibtune.data.training_set import option_order
from calibtune.errors import UserError
from calibtune.tuning import crossfit
from calibtune.tuning.estep import EStep, score, score_bins
from calibtune.tuning.fit import CHECKPOINTS
from calibtune.tuning.trainer import CalibrationTrainer

pytestmark = pytest.mark.usefixtures("mirror")


@pytest.fixture
def trainers(monkeypatch):
    made = []
    train = CalibrationTrainer.train

    def watched(self, **options):
        made.append(self)
        return train(self, **options)

    monkeypatch.setattr(CalibrationTrainer, "train", watched)
    return made


def test_no_question_is_scored_by_an_adapter_that_was_trained_on_it(model, tmp_path, trainers):
    # In one order of options a question's tokens tell which it is.
    small_fit(model, tmp_path / "out", "rcft", e_step_rows="cross-fitted", epochs=2, shuffle_options=False)
    *folds, final = trainers
    assert len(folds) == crossfit.FOLDS
    scored = []
    for fold in folds:
        trained = {row.input_ids for row in fold.questions.train.rows}
        own = [row.input_ids for row in fold.questions.held_out]
        assert not trained & set(own)
        assert len(fold.history) == 2
        scored += own
    assert sorted(scored) == sorted(row.input_ids for row in final.questions.train.rows)


def test_the_first_epochs_bins_are_those_of_the_untrained_model_on_all_rows(model, tmp_path, trainers):
    small_fit(model, tmp_path / "crossed", "rcft", e_step_rows="cross-fitted", shuffle_options=False)
    table = trainers[-1].tables[0]
    small_fit(model, tmp_path / "train", "rcft", e_step_rows="train", shuffle_options=False)
    assert table.count.tolist() == trainers[-1].e_step.table.count.tolist()
    np.testing.assert_allclose(table.accuracy, trainers[-1].e_step.table.accuracy)
    # One epoch long, both then train alike: the folds left nothing behind in the base model.
    assert same_weights(tmp_path / "crossed", tmp_path / "train")


def test_a_resumed_fit_does_not_train_the_folds_again(model, tmp_path, trainers, monkeypatch):
    options = {"e_step_rows": "cross-fitted", "epochs": 2}
    small_fit(model, tmp_path / "whole", "rcft", **options)
    del trainers[:]
    loss = CalibrationTrainer.compute_loss

    def dies(self, *args, **kwargs):
        if len(trainers) == 3 and self.state.global_step == 5:
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CalibrationTrainer, "compute_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            small_fit(model, tmp_path / "cut", "rcft", **options)
    assert len(json.loads((tmp_path / "cut" / CHECKPOINTS / crossfit.FILE).read_text())) == 2
    del trainers[:]
    small_fit(model, tmp_path / "cut", "rcft", resume=True, **options)
    assert len(trainers) == 1
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("kind", ["running", "epoch", "bins"])
def test_every_epochs_accuracies_are_the_folds_whatever_the_targets_are_made_of(model, tmp_path, trainers, kind):
    small_fit(model, tmp_path / "out", "rcft", e_step=kind, e_step_rows="cross-fitted", epochs=2)
    *folds, final = trainers
    assert {fold.recipe.e_step for fold in folds} == {kind}
    golds = [np.array([row.gold for row in fold.questions.held_out]) for fold in folds]
    for fold, gold in zip(folds, golds, strict=True):  # a fold's own accuracies are of what it was not trained on
        np.testing.assert_allclose(fold.e_step.table.accuracy, score_bins(fold.history[1], gold, 10).accuracy)
    table = score_bins(np.concatenate([fold.history[1] for fold in folds]), np.concatenate(golds), 10)
    assert final.e_step.epoch == 1
    assert final.e_step.table.count.tolist() == table.count.tolist()
    np.testing.assert_allclose(final.e_step.table.accuracy, table.accuracy)
    assert (final.e_step.targets is None) == (kind == "bins")


@pytest.mark.parametrize("changes", [{"e_step": "once"}, {"tuning": "full"}])
def test_what_cannot_be_cross_fitted_is_refused(model, changes):
    with pytest.raises(UserError, match="cross-fitted needs --e-step running, epoch or bins, and --tuning lora"):
        small_recipe(model, "rcft", e_step_rows="cross-fitted", **changes)


@pytest.mark.parametrize("rows", ["train", "held-out"])
def test_a_running_e_step_scores_training_questions_before_the_first_epoch_alone(
    model, tmp_path, trainers, monkeypatch, rows
):
    scored, given = [], []
    plain, loss = CalibrationTrainer._score, CalibrationTrainer._loss
    monkeypatch.setattr(CalibrationTrainer, "_score", lambda self, rows: scored.append(rows) or plain(self, rows))

    def noted(self, model, batch):
        value, letters = loss(self, model, batch)
        # By what each option says, since their order is another in each epoch.
        train = self.questions.train
        for row, values in zip(batch["row"].tolist(), letters.tolist(), strict=True):
            example = train.examples[row]
            order = option_order(0, train.epoch, example.doc_hash, len(example.letters))
            given.append((row, dict(zip(order, values, strict=False))))
        return value, letters

    monkeypatch.setattr(CalibrationTrainer, "_loss", noted)
    small_fit(model, tmp_path / "out", "rcft", e_step="running", e_step_rows=rows, epochs=2)
    train = trainers[0].questions.train
    assert sum(len(found) == len(train) for found in scored) == 1
    found = trainers[0].e_step.scores
    passed = dict(given[:16])
    assert len(passed) == 16
    for row, example in enumerate(train.examples):
        order = option_order(0, 1, example.doc_hash, len(example.letters))
        if row in passed:
            assert found[row, : len(order)].tolist() == pytest.approx([passed[row][option] for option in order])
            assert np.isnan(found[row, len(order) :]).all()
    # The two questions that the first epoch left out keep the scores from before it.
    assert len(train) - len(passed) == 2
    assert np.isfinite(found[:, :3]).all()
    table = trainers[0].e_step.table
    assert table.count.sum() == (len(train) if rows == "train" else len(trainers[0].questions.held_out))


def test_an_exact_e_step_scores_each_training_question_with_the_present_model(model, tmp_path, trainers, monkeypatch):
    taken = []
    begin = CalibrationTrainer.begin_epoch

    def watched(self, epoch):
        begin(self, epoch)
        scores = score(self.model, self.questions.train.rows, self.questions.pad_id, 3)
        again = EStep(self.recipe)
        again.take(epoch, self.e_step.table, scores)
        taken.append((self.e_step.targets.clone(), again.targets))

    monkeypatch.setattr(CalibrationTrainer, "begin_epoch", watched)
    small_fit(model, tmp_path / "out", "rcft", e_step="epoch", epochs=2)
    for kept, expected in taken:
        np.testing.assert_allclose(kept, expected, atol=1e-5)
    assert not np.allclose(taken[0][0], taken[1][0], atol=1e-3)


@pytest.mark.parametrize(("kind", "rows", "scored"), [
    ("bins", "held-out", 0), ("once", "held-out", 0), ("bins", "train", 2), ("once", "train", 1),
])  # fmt: skip
def test_bins_alone_are_of_the_rows_asked_for_and_set_no_targets(
    model, tmp_path, trainers, monkeypatch, kind, rows, scored
):
    found, plain = [], CalibrationTrainer._score
    monkeypatch.setattr(CalibrationTrainer, "_score", lambda self, rows: found.append(rows) or plain(self, rows))
    small_fit(model, tmp_path / "out", "rcft", e_step=kind, e_step_rows=rows, epochs=2)
    train, held_out = trainers[0].questions.train, trainers[0].questions.held_out
    assert sum(len(shown) == len(train) for shown in found) == scored
    assert trainers[0].e_step.targets is None
    assert trainers[0].e_step.table.count.sum() == len(train if rows == "train" else held_out)
