import datasets
import pytest

from harness_ext import documents
from harness_ext.errors import UserError


def arc_rows(**change):
    row = {
        "id": "q1",
        "question": " Q? ",
        "choices": {"text": ["x ", "y", "z"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    }
    return datasets.Dataset.from_list([{**row, **change}])


def mmlu_row(choices, answer=0):
    return {"question": "Q?", "subject": "logic", "choices": choices, "answer": answer}


def test_arc_digit_labels_are_mapped_to_an_index():
    assert documents.arc(arc_rows())[0] == {"question": "Q?", "choices": ["x", "y", "z"], "gold": 2}


def test_openbookqa_uses_the_question_stem():
    row = {"question_stem": "S", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    assert documents.openbookqa(datasets.Dataset.from_list([row]))[0] == {
        "question": "S",
        "choices": ["x", "y"],
        "gold": 1,
    }


def test_a_split_has_its_name_where_all_of_it_was_asked_for():
    rows = arc_rows()
    for asked in ("test", "test[:]"):
        rows._split = datasets.NamedSplit(asked)
        assert documents.split_of(rows) == "test"


def test_unknown_answer_key_is_refused():
    with pytest.raises(UserError, match=r"row 0 \(id q1\) has no right answer: answerKey 'E'"):
        documents.arc(arc_rows(answerKey="E"))


def test_arc_row_with_a_repeated_option_is_refused():
    with pytest.raises(UserError, match="same option under A and B"):
        documents.arc(arc_rows(choices={"text": ["x", "x ", "z"], "label": ["1", "2", "3"]}))


def test_unlabeled_medmcqa_split_is_refused():
    row = {"id": "m", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": -1}
    with pytest.raises(UserError, match="-1 is not an index of its 4 options; evaluate a labeled split"):
        documents.medmcqa(datasets.Dataset.from_list([row]))


@pytest.mark.parametrize("answer", [4, -1, None])
def test_answer_out_of_range_is_refused(answer):
    with pytest.raises(UserError, match=f"no right answer: {answer}"):
        documents.mmlu(datasets.Dataset.from_list([mmlu_row(["a", "b", "c", "d"], answer)]))


def test_mmlu_rows_with_a_repeated_option_are_skipped_and_logged(caplog):
    rows = [mmlu_row(["a", "b"], 1), mmlu_row(["c", "c "]), mmlu_row(["d", "e"])]
    assert documents.mmlu(datasets.Dataset.from_list(rows))["choices"] == [["a", "b"], ["d", "e"]]
    assert "1 of 3 questions" in caplog.text
    assert "rows [1]" in caplog.text


def test_mmlu_row_with_an_empty_option_is_refused():
    with pytest.raises(UserError, match="empty option B"):
        documents.mmlu(datasets.Dataset.from_list([mmlu_row(["a", " ", ""])]))


def test_medmcqa_few_shot_pool_has_1000_rows():
    rows = [{"question": f"Q{i}", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0} for i in range(1001)]
    assert len(documents.medmcqa_shots(datasets.Dataset.from_list(rows))) == 1000


@pytest.mark.parametrize("question", [None, "  "])
def test_missing_question_is_refused(question):
    with pytest.raises(UserError, match="has no question"):
        documents.document(question, ["a", "b"], 0, "row 1")


def test_changed_mirror_gets_a_new_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert documents.mirror_cache("owner/name") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "test.jsonl").write_text("{}")
    first = documents.mirror_cache("owner/name")
    assert first == documents.mirror_cache("owner/name")
    (tmp_path / "owner" / "name" / "test.jsonl").write_text('{"a": 1}')
    assert documents.mirror_cache("owner/name") not in (None, first)


def test_error_names_the_row_before_skipping():
    rows = [mmlu_row(["c", "c"]), mmlu_row(["a", "b"]), mmlu_row(["d", "e"], 2)]
    with pytest.raises(UserError, match="row 2 has no right answer: 2"):
        documents.mmlu(datasets.Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("make", "row"),
    [
        (documents.arc, {"id": "q", "question": "Q?", "choices": None, "answerKey": "A"}),
        (documents.arc, {"id": "q", "question": "Q?", "answerKey": "A"}),
        (documents.openbookqa, {"id": "q", "question_stem": "Q?", "choices": {"label": ["A"]}, "answerKey": "A"}),
        (documents.mmlu, {"id": "q", "question": "Q?", "subject": "logic", "choices": None, "answer": 0}),
        (documents.medmcqa, {"id": "q", "question": "Q?", "opa": "a"}),
    ],
)
def test_row_with_a_missing_field_is_refused(make, row):
    with pytest.raises(UserError, match=r"row 0 \(id q\) lacks a field .*'Q\?'.*; fix or remove the row"):
        make(datasets.Dataset.from_list([row]))


@pytest.mark.parametrize("choices", [["a", 3], 3, [None, None]])
def test_options_that_are_not_all_texts_are_refused(choices):
    with pytest.raises(UserError, match="row 1 has options that are not texts"):
        documents.document("Q?", choices, 0, "row 1")


def test_a_row_is_named_by_data_set_split_position_and_id():
    rows = arc_rows()
    assert documents.name_of(rows, 3, {}) == "data set None row 3"
    rows.info.dataset_name = "ai2_arc"
    assert documents.name_of(rows, 3, {"id": "q"}) == "ai2_arc None row 3 (id q)"
