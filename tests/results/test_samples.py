import dataclasses
import json
import math

import numpy as np
import pytest
from sample_files import DATE, sample, write, write_results

from calibtune.results import samples
from calibtune.results.measures import harness_measures
from calibtune.results.samples import find_samples, read_prompts, read_samples
from harness_ext.errors import UserError


def test_rows_are_sorted_by_document(tmp_path):
    rows = read_samples(write(tmp_path, [sample(1, target="1"), sample(0, (-3.0, -1.0))]))
    assert rows.labels.tolist() == [0, 1]
    assert rows.log_probs[0, :2].tolist() == [-3.0, -1.0]
    assert math.isnan(rows.log_probs[0, 2])
    assert rows.doc_hashes == ("hash0", "hash1")


def test_log_likelihoods_may_be_numbers_or_strings(tmp_path):
    rows = read_samples(write(tmp_path, [sample(0, resps=[[[-1.5, False]], [["-2.5e-3", "True"]]])]))
    assert rows.log_probs.tolist() == [[-1.5, -0.0025]]


@pytest.mark.parametrize("bad", [True, "nan", "-inf", "-Infinity", "", "one"])
def test_a_log_likelihood_that_is_no_finite_number_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match=r"resps.1.0.0 is .*, which is not a finite log-likelihood"):
        read_samples(write(tmp_path, [sample(0, resps=[[[-1.5, False]], [[bad, False]]])]))


@pytest.mark.parametrize("bad", [True, 1.0, "1.5", "-1", "B"])
def test_a_right_answer_that_is_no_index_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match=r"target is .*, which is not the index of an option"):
        read_samples(write(tmp_path, [sample(0, target=bad)]))


def test_samples_do_not_change_and_show_no_hash_of_each_question(tmp_path):
    found = read_samples(write(tmp_path, [sample(i, (-1.0 - i, -2.0), prompt_hash=f"prompt{i}") for i in range(3)]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.labels = found.labels + 1
    assert "mc_calib_arc" in repr(found)
    assert "unseen" not in repr(found)
    assert not {*found.doc_hashes, *found.prompt_hashes} & set(repr(found).replace("'", " ").split())


def test_missing_questions_are_refused_unless_results_count_them(tmp_path):
    path = write(tmp_path, [sample(3), sample(17)])
    with pytest.raises(UserError, match="question 0 is missing"):
        read_samples(path)
    write_results(tmp_path, mc_calib_arc=2)
    assert len(read_samples(path).labels) == 2


@pytest.mark.parametrize("other", [[], [["-1.0", "False"]], [["-1.0", "False", "3"]], ["-1.0"]])
def test_responses_of_other_filters_give_no_temperature(tmp_path, other):
    assert read_samples(write(tmp_path, [sample(0, filtered_resps=other)])).temperatures == {}


def test_find_samples_returns_the_newest_file_per_task_and_folder(tmp_path):
    for folder, task, date in [("m", "x", "2026-01-01"), ("m", "x", "2026-01-02"), ("m", "y", "2026-01-01")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, [sample(0)], task, f"{date}T00-00-00.0")
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [sample(0)], "x", "2026-01-01T00-00-00.0")
    found = [str(path.relative_to(tmp_path)) for path in find_samples(tmp_path)]
    assert found == [
        "m/samples_x_2026-01-02T00-00-00.0.jsonl",
        "m/samples_y_2026-01-01T00-00-00.0.jsonl",
        "other/samples_x_2026-01-01T00-00-00.0.jsonl",
    ]


def test_find_samples_accepts_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(sample(0)))
    assert find_samples(path) == [path]
    assert read_samples(path).task == "mine"


def test_constant_log_likelihoods_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"arc_.*the same log-likelihood \(question 0: -1.0\)"):
        read_samples(write(tmp_path, [sample(i, (-1.0, -1.0)) for i in range(3)]))


def test_letters_that_always_tie_are_refused(tmp_path):
    with pytest.raises(UserError, match="letters B and C have the same log-likelihood in all 12"):
        read_samples(write(tmp_path, [sample(i, (-1.0 - i, -2.0, -2.0)) for i in range(12)]))


def test_row_without_letters_is_refused(tmp_path):
    with pytest.raises(UserError, match="question 1: the right answer is 0, not the index of one of its 0 options"):
        read_samples(write(tmp_path, [sample(0), sample(1, resps=[])]))


def test_row_with_one_letter_is_refused(tmp_path):
    path = write(tmp_path, [sample(0), sample(1, (-1.0,))])
    with pytest.raises(UserError, match=r"samples_mc_calib_arc_.*: row 1 has fewer than two letters: \[-1.0, nan"):
        read_samples(path)


@pytest.mark.parametrize("bad", [{"doc_id": "0"}, {"doc": "text"}, {"resps": "x"}])
def test_sample_with_a_wrong_field_type_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match=rf"line 2: {next(iter(bad))} is .*, which should be a"):
        read_samples(write(tmp_path, [sample(0), {**sample(1), **bad}]))


def test_damaged_results_file_is_refused(tmp_path):
    path = write(tmp_path, [sample(0)])
    (tmp_path / f"results_{DATE}.json").write_text("{")
    with pytest.raises(UserError, match=r"results file is damaged: .*results_2026"):
        read_samples(path)


@pytest.mark.parametrize(
    "run",
    [
        [],
        {"n-samples": None},
        {"n-samples": {"mc_calib_arc": 1}},
        {"n-samples": {"mc_calib_arc": {"effective": None}}},
        {"n-samples": {"mc_calib_arc": {"effective": 1}}, "task_hashes": [1]},
    ],
    ids=str,
)
def test_malformed_results_file_is_refused(tmp_path, run):
    path = write(tmp_path, [sample(0)])
    (tmp_path / f"results_{DATE}.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=rf"results file .*results_{DATE}.json.*; run the evaluation again"):
        read_samples(path)


@pytest.mark.parametrize("target", ["3", "4"])
def test_right_answer_that_is_no_option_is_refused(tmp_path, target):
    path = write(tmp_path, [sample(0, target="2"), sample(1, target=target)])
    with pytest.raises(UserError, match=rf"question 1: the right answer is {target}, not the index of one of its 3"):
        read_samples(path)


def triples(temperature, raw=(-1.0, -3.0)):
    """Return what letter_softmax leaves of two options."""
    scaled = [value / temperature for value in raw]
    total = math.log(sum(map(math.exp, scaled)))
    return [[math.exp(value - total), value - total, first] for value, first in zip(scaled, raw, strict=True)]


def test_filters_share_the_questions_and_have_their_own_temperature(tmp_path):
    def row(number, name, temperature, **change):
        filtered = {"filtered_resps": triples(temperature)}
        return sample(number, (-1.0, -3.0), doc={"from": name, "number": number}, filter=name, **filtered, **change)

    path = write(
        tmp_path,
        [row(1, "raw", 1, prompt_hash="p1"), row(0, "raw", 1), row(0, "scaled", 2.5), row(1, "scaled", 2.5)],
    )
    found = read_samples(path)
    assert (found.filter, found.temperatures) == ("raw", {"raw": 1.0, "scaled": 2.5})
    assert found.log_probs.tolist() == [[-1.0, -3.0]] * 2
    assert found.prompt_hashes == (None, "p1")
    assert found.documents == ({"from": "raw", "number": 0}, {"from": "raw", "number": 1})


@pytest.mark.parametrize(("rows", "found"), [(99, {"none": 2.0}), (100, {})])
def test_a_temperature_is_looked_for_in_a_hundred_rows(tmp_path, rows, found):
    even = [sample(i, (-1.0, -1.0), filtered_resps=triples(2, (-1.0, -1.0))) for i in range(rows)]
    path = write(tmp_path, [*even, sample(rows, (-1.0, -3.0), filtered_resps=triples(2))])
    assert read_samples(path).temperatures == found


def test_a_temperature_is_that_of_the_first_row_that_tells(tmp_path):
    rows = [sample(i, (-1.0, -3.0), filtered_resps=triples(t)) for i, t in enumerate((2, 4))]
    assert read_samples(write(tmp_path, rows)).temperatures == {"none": 2.0}


@pytest.mark.parametrize(
    ("filtered", "temperature"),
    [
        ([[0.5, -1.0, -1.0], [0.5, -1.0, -3.0]], None),  # scaled to one value
        ([[0.5, -1.0, -1.0], [0.5, -1.000002, -3.0]], 1e6),
        ([[0.5, -1.0, -1.0], [0.5, -2.0, -1.0]], None),  # raw of one value
        ([[0.5, 1.5e308, -1.0], [0.5, -1.5e308, -2.0]], None),
        ([[0.5, -1.0, -1.0], [0.5, -4.0, -2.0]], 0.333333333),
    ],
)
def test_a_temperature_that_cannot_be_is_none(filtered, temperature):
    assert samples._temperature(filtered) == (temperature and pytest.approx(temperature, rel=1e-9))


def test_an_empty_file_or_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="is empty; run the evaluation again with --log_samples"):
        read_samples(write(tmp_path, []))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none has no samples_\*.jsonl; run lm_eval"):
        find_samples(tmp_path / "none")
    with pytest.raises(UserError, match="does not exist; give a samples file"):
        find_samples(tmp_path / "nowhere")


def test_a_question_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="question 1 occurs twice, as if two runs were joined"):
        read_samples(write(tmp_path, [sample(0), sample(1), sample(1), sample(2)]))


def test_missing_rows_are_counted_and_the_first_five_are_named(tmp_path):
    path = write(tmp_path, [sample(2), sample(5)])
    write_results(tmp_path, mc_calib_arc=9)
    with pytest.raises(UserError, match=r"has 2 questions, but .* counts 9 \(missing: \[0, 1, 3, 4, 6\]\)"):
        read_samples(path)
    write_results(tmp_path, other=2)
    with pytest.raises(UserError, match=r"has no task 'mc_calib_arc', only \['other'\]"):
        read_samples(path)


def test_the_first_missing_question_is_named_without_a_results_file(tmp_path):
    with pytest.raises(UserError, match="question 1 is missing; rows were removed"):
        read_samples(write(tmp_path, [sample(0), sample(2)]))


def test_a_table_of_too_many_values_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, [sample(0), sample(1, (-1.0, -2.0))])
    monkeypatch.setattr(samples, "MOST_VALUES", 6)
    assert read_samples(path).log_probs.shape == (2, 3)
    monkeypatch.setattr(samples, "MOST_VALUES", 5)
    with pytest.raises(UserError, match="2 questions of up to 3 options are too many; split the file"):
        read_samples(path)


def test_a_file_of_more_options_than_letters_go_is_refused(tmp_path):
    assert read_samples(write(tmp_path, [sample(0, range(-1000, 0), target="999")])).labels.tolist() == [999]
    for row in (sample(0, range(-999, 2)), sample(0, target="1000")):
        with pytest.raises(UserError, match="line 1: "):
            read_samples(write(tmp_path, [row]))


def test_letters_have_a_flag_at_most_and_whole_responses_more(tmp_path):
    for extra, refused in (([], True), (["False"], True), (["False", "8"], False)):
        path = write(tmp_path, [sample(0, resps=[[["-5000.0", *extra]], [["-1.0", *extra]]])])
        if refused:
            with pytest.raises(UserError, match=r"letter A of question 0 the log-likelihood -5000\.0"):
                read_samples(path)
        else:
            assert read_samples(path).log_probs.tolist() == [[-5000.0, -1.0]]


def test_prompts_are_in_the_questions_order(tmp_path):
    def arguments(prompt):
        return {"gen_args_0": {"arg_0": prompt, "arg_1": " A"}, "gen_args_1": {"arg_0": prompt, "arg_1": " B"}, "n": 1}

    rows = [sample(1, arguments=arguments("one")), sample(0, arguments=arguments("zero")), sample(2)]
    rows += [sample(3, arguments={"n": 1}), sample(4, arguments={"gen_args_0": {}, "gen_args_1": {"arg_0": "other"}})]
    given = [("zero", [" A", " B"]), ("one", [" A", " B"]), ("", []), ("", []), ("", ["", ""])]
    assert read_prompts(write(tmp_path, rows)) == given


def test_ties_of_letters_are_warned_of_and_those_of_whole_responses_are_not(tmp_path, caplog):
    read_samples(write(tmp_path, [sample(0, (-1.0, -1.0)), sample(1, (-1.0, -2.0))]))
    assert "1 of 2 questions have letters tied for first place" in caplog.text
    caplog.clear()
    # One answer with a token count suffices.
    responses = [[["-7.0", "False"]], [["-7.0", "False", "8"]]]
    read_samples(write(tmp_path, [sample(0, resps=responses), sample(1, (-1.0, -2.0))]))
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "temperature"), [("raw", 1.0), ("scaled", 2.5)])
def test_samples_file_reproduces_the_harness_metrics(tiny_run, name, temperature):
    table, folder = tiny_run
    (path,) = find_samples(folder)
    rows = read_samples(path)
    numbers = harness_measures(rows.log_probs, rows.labels, rows.temperatures[name])
    assert len(numbers) == 16
    assert rows.temperatures[name] == temperature
    assert {key: table[f"{key},{name}"] for key in numbers} == pytest.approx(numbers, abs=1e-12)


def test_harness_file_has_ordered_questions_with_ragged_letters(tiny_run):
    (path,) = find_samples(tiny_run[1])
    rows = read_samples(path)
    assert (rows.task, rows.filter, rows.path) == ("both", "raw", path)
    assert np.isfinite(rows.log_probs).sum(axis=1).tolist() == [4, 4, 3, 5] * 6
    assert [doc["gold"] for doc in rows.documents] == rows.labels.tolist()
    assert len(set(rows.doc_hashes)) == 24


def test_samples_changed_since_the_run_are_refused(tiny_run, tmp_path):
    (path,) = find_samples(tiny_run[1])
    (results,) = tiny_run[1].glob("results_*.json")
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    lines[0] = json.dumps({**row, "target": "2", "target_hash": "0"})
    (tmp_path / path.name).write_text("\n".join(lines) + "\n")
    (tmp_path / results.name).write_text(results.read_text())
    with pytest.raises(UserError, match="its questions are not those of the run's results file"):
        read_samples(tmp_path / path.name)


P_STAR = [0.5, 0.3, 0.2]


def test_true_probabilities_are_in_the_questions_order(tmp_path):
    rows = [sample(1, doc={"p_star": [0.1, 0.2, 0.7]}), sample(0, doc={"p_star": P_STAR})]
    assert read_samples(write(tmp_path, rows)).p_star.tolist() == [P_STAR, [0.1, 0.2, 0.7]]


def test_a_true_probability_may_be_0(tmp_path):
    assert read_samples(write(tmp_path, [sample(0, doc={"p_star": [0.5, 0.5, 0]})])).p_star.tolist() == [[0.5, 0.5, 0]]


@pytest.mark.parametrize("bad", [[0.5, 0.5], "x", [0.5, 0.5, 0.5], [1.5, -0.5, 0], [True, "0", 0], None])
def test_what_is_no_distribution_over_the_options_is_no_p_star(tmp_path, bad):
    rows = [sample(number, doc={"p_star": given}) for number, given in enumerate([P_STAR, bad, P_STAR])]
    assert read_samples(write(tmp_path, rows)).p_star is None


def shards(tmp_path, *parts, original=None):
    """Write shards of a run, each into a folder of its own."""
    files = []
    for number, rows in enumerate(parts):
        (folder := tmp_path / f"shard{number}").mkdir()
        files.append(write(folder, rows))
        if original:
            counted = {"original": original[number], "effective": len(rows)}
            (folder / f"results_{DATE}.json").write_text(json.dumps({"n-samples": {"mc_calib_arc": counted}}))
    return files


def test_shards_are_read_as_one_and_named_by_their_first_file(tmp_path):
    one, two, three = shards(tmp_path, [sample(2)], [sample(0, (-3.0, -1.0))], [sample(1)], original=[3, 3, 3])
    assert read_samples(one).where == str(one)
    assert read_samples(one, two).where == f"{one} and 1 more shard"
    found = read_samples(one, two, three)
    assert found.where == f"{one} and 2 more shards"
    assert found.doc_hashes == ("hash0", "hash1", "hash2")
    assert found.log_probs[0, :2].tolist() == [-3.0, -1.0]


def test_a_question_in_two_shards_is_refused(tmp_path):
    one, two = shards(tmp_path, [sample(0), sample(1)], [sample(1), sample(2)], original=[3, 3])
    with pytest.raises(UserError, match="question 1 occurs twice"):
        read_samples(one, two)


def test_shards_of_other_data_are_refused(tmp_path):
    one, two = shards(tmp_path, [sample(0)], [sample(1)], original=[2, 3])
    with pytest.raises(UserError, match=r"shards of 2 and 3 questions; evaluate all shards on the same data"):
        read_samples(one, two)


def test_letters_that_a_server_did_not_show_are_marked_and_their_ties_not_warned_of(tmp_path, caplog):
    tied = [[["-1.0", "False"]], [["-1.0", "None"]]]
    shown = [[["-1.0", "False"]], [["-2.0", "False"]]]
    found = read_samples(write(tmp_path, [sample(0, resps=tied), sample(1, resps=shown)]))
    assert found.unseen.tolist() == [[False, True], [False, False]]
    assert "tie" not in caplog.text


def test_a_temperature_of_question_0_is_told_by_it(tmp_path):
    def row(number, temperature):
        filtered = [["0.5", str(-1 / temperature), "-1"], ["0.5", str(-2 / temperature), "-2"]]
        return sample(number, (-1.0, -2.0), filtered_resps=filtered)

    for rows in ([row(0, 2.0), row(1, 4.0)], [row(1, 4.0), row(0, 2.0)]):
        assert read_samples(write(tmp_path, rows)).temperatures == {"none": 2.0}


def asked(doc_id, options, orders, unseen=()):
    """Return a question whose options have other log-likelihoods in each of its orders."""
    flags = [["None" if (option, order) in unseen else "False" for order in range(orders)] for option in range(options)]
    return sample(
        doc_id, resps=[[[str(-1.0 - i - n), flag] for n, flag in enumerate(row)] for i, row in enumerate(flags)]
    )


@pytest.mark.parametrize(
    ("sizes", "orders"),
    [
        ([(2, 1), (3, 1)], 1),
        ([(3, 2), (2, 2)], 2),
        ([(2, 2), (4, 3)], 3),
        ([(2, 2), (4, 4)], "all"),
    ],
)
def test_the_number_of_orders_is_the_largest_or_all(tmp_path, sizes, orders):
    assert read_samples(write(tmp_path, [asked(i, *size) for i, size in enumerate(sizes)])).orders == orders


def test_a_repeated_last_letter_is_no_order_of_its_own(tmp_path):
    found = read_samples(write(tmp_path, [sample(0, resps=[[["-1.0", "False"]], [["-2.0", "False"]] * 2])]))
    assert found.orders == 1
    assert found.log_probs.tolist() == [[-1.0, -2.0]]


def test_an_option_that_a_server_did_not_show_in_one_of_its_orders_is_marked(tmp_path):
    found = read_samples(write(tmp_path, [asked(0, 3, 2, unseen=[(1, 1)])]))
    assert found.unseen.tolist() == [[False, True, False]]


def test_letters_that_a_server_never_showed_are_no_shared_token(tmp_path):
    rows = [["-0.1", "False"]], [["-4.0", "None"]], [["-4.0", "None"]]
    assert read_samples(write(tmp_path, [sample(i, resps=rows) for i in range(12)])).unseen.sum() == 24
