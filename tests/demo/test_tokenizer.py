import pytest
from transformers import AutoTokenizer

from calibtune.data.encoder import Encoder
from calibtune.data.examples import Prompts
from calibtune.data.tasks import load_tasks
from calibtune.demo import ALIGNED, PRETRAINED
from calibtune.demo.prompts import build_bank
from calibtune.demo.tokenizer import UNKNOWN, build_tokenizer
from harness_ext.prompts import doc_to_text
from harness_ext.world.questions import splits


@pytest.fixture(scope="module")
def shipped():
    return AutoTokenizer.from_pretrained(PRETRAINED)


@pytest.fixture(scope="module")
def bank():
    return build_bank()


def chat_prompts(tokenizer):
    task = load_tasks(["mc_calib_world"])[0]
    return Prompts(task, Encoder(tokenizer), apply_chat_template=True)


def test_tokenizer_knows_every_word_of_the_questions(shipped):
    prompts = chat_prompts(shipped)
    plain = Prompts(prompts.task, prompts.encoder, apply_chat_template=False)
    unknown = shipped.convert_tokens_to_ids(UNKNOWN)
    for docs in splits().values():
        for doc in docs[::20]:
            for way in (prompts, plain):
                assert unknown not in shipped(way.example(doc).context)["input_ids"]
    every_word = " ".join(doc_to_text(doc) for docs in splits().values() for doc in docs)
    assert unknown not in shipped(every_word)["input_ids"]
    assert unknown in shipped("Which quark?")["input_ids"]


def test_letters_are_single_tokens_with_and_without_a_space(shipped):
    ids = {letter: shipped(letter, add_special_tokens=False)["input_ids"] for letter in "ABCD"}
    assert all(len(tokens) == 1 for tokens in ids.values())
    assert len({tokens[0] for tokens in ids.values()}) == 4
    assert all(shipped(f" {letter}", add_special_tokens=False)["input_ids"] == ids[letter] for letter in ids)


def test_shipped_tokenizers_equal_the_built_one(bank):
    for folder in (PRETRAINED, ALIGNED):
        shipped = AutoTokenizer.from_pretrained(folder)
        assert shipped.get_vocab() == bank.tokenizer.get_vocab()
        assert shipped.chat_template == bank.tokenizer.chat_template


def test_custom_system_message_is_one_token():
    tokenizer = build_tokenizer("Say a letter.\n\n")
    assert "Say a letter." in tokenizer.tokenize("Say a letter. Which color?")
